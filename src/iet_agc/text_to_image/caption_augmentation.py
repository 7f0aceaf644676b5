"""How the tokens of captions are changed, so that images are not learnt by heart from their texts.

The mitigations of Somepalli et al., 2023 (arXiv 2305.20086) on CLIP's tokens in place of strings: a caption
is replaced by random words, random words or numbers are put between its words, or its own words are repeated there.
A word is what the tokenizer ends with </w>: a punctuation mark and a digit are words of their own. All of it happens
on the device where the tokens are, and nothing is read on the host.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor

from iet_agc.runtime.errors import UserError

__all__ = ["Changes", "UNCHANGED", "Vocabulary", "change", "vocabulary_of"]

#: Words of a random caption, and digits of a random number at most, as in the authors' code.
_RANDOM_WORDS, _DIGITS = 4, 5


@dataclass(frozen=True)
class Changes:
    """How captions are changed, each time that they are used.

    Attributes:
        random_caption: probability that random words stand in place of the caption (RC in the paper).
        random_tokens: random words put at random places (RT).
        random_numbers: numbers from 0 to 99,999 put at random places (RNA).
        repeat_words: words of the caption put at random places once more (CWR).
        change_rate: probability that a caption is changed by the last three.

    Raises:
        UserError: a rate without anything that it is the rate of.
    """

    random_caption: float = 0.0
    random_tokens: int = 0
    random_numbers: int = 0
    repeat_words: int = 0
    change_rate: float = 1.0

    def __post_init__(self) -> None:
        if self.change_rate < 1 and not self.inserts:
            raise UserError(
                "text.change_rate has no effect without random_tokens, random_numbers or repeat_words: leave it out"
            )

    @property
    def inserts(self) -> bool:
        """Whether anything is put between a caption's words."""
        return self.random_tokens > 0 or self.random_numbers > 0 or self.repeat_words > 0

    @property
    def any(self) -> bool:
        """Whether captions are changed at all."""
        return self.inserts or self.random_caption > 0


#: Captions as they are.
UNCHANGED = Changes()


@dataclass(frozen=True)
class Vocabulary:
    """What changes need to know of a tokenizer's V entries.

    Attributes:
        special: start, end, padding and the like, bool (V,).
        last: entries that end a word, bool (V,).
        words: entries that are a word alone, int64 (W,).
        digits: those of the digits 0 to 9, int64 (10,); none, (0,), where one is missing.
        end: the entry after a caption, int64 ().
        padding: the entry that fills a row up, int64 ().
    """

    special: Tensor
    last: Tensor
    words: Tensor
    digits: Tensor
    end: Tensor
    padding: Tensor

    def to(self, device: torch.device) -> Self:
        """The same on a device."""
        return replace(self, **{field.name: getattr(self, field.name).to(device) for field in fields(self)})


def vocabulary_of(entries: Mapping[str, int], special: Collection[int], end: int, padding: int) -> Vocabulary:
    """The entries of a tokenizer of CLIP's kind, whose words end with </w>.

    Args:
        entries: number of each entry.
        special: numbers of those that are no text.
        end: number of the entry after a caption.
        padding: number of the entry that fills a row up.

    Raises:
        UserError: no entry ends a word.
    """
    size = max(entries.values()) + 1
    is_special, last = torch.zeros(size, dtype=torch.bool), torch.zeros(size, dtype=torch.bool)
    is_special[[*special, end, padding]] = True
    last[[number for entry, number in entries.items() if entry.endswith("</w>")]] = True
    last &= ~is_special
    if not last.any():
        raise UserError("the tokenizer has no words, which end with </w> in CLIP's: its captions cannot be changed")
    found = [entries.get(f"{digit}</w>") for digit in range(10)]
    digits = torch.tensor([digit for digit in found if digit is not None], dtype=torch.int64)
    digits = digits if len(digits) == 10 else digits[:0]
    return Vocabulary(is_special, last, last.nonzero()[:, 0], digits, torch.tensor(end), torch.tensor(padding))


def change(rows: Tensor, changes: Changes, vocabulary: Vocabulary, rng: torch.Generator) -> Tensor:
    """Captions, changed at random.

    Words are repeated first, then come numbers, then random words; a random caption replaces all of that. What an
    insertion pushes beyond the row's end is lost, but for the end token.

    Args:
        rows: int64 (B, L): start, caption, end, padding. What stands in a row of the result depends on its number, not
            on the other rows.
        changes: which.
        vocabulary: of the tokenizer, where the rows are.
        rng: what draws, on the same device.

    Returns:
        int64 (B, L).
    """
    changed = rows
    if changes.inserts:
        lots = _lots(rows, rng)
        texts = _inserted(rows, changes, vocabulary, rng)
        changed = torch.where(lots[:, None] < changes.change_rate, texts, rows)
    if changes.random_caption > 0:
        lots = _lots(rows, rng)
        changed = torch.where(lots[:, None] < changes.random_caption, _random(rows, vocabulary, rng), changed)
    return changed


def _lots(rows: Tensor, rng: torch.Generator) -> Tensor:
    """One number in [0, 1) for each row, float64 (B,)."""
    return torch.rand(len(rows), generator=rng, device=rows.device, dtype=torch.float64)


def _random(rows: Tensor, vocabulary: Vocabulary, rng: torch.Generator) -> Tensor:
    count = min(_RANDOM_WORDS, rows.shape[1] - 2)
    chosen = torch.randint(len(vocabulary.words), (len(rows), count), generator=rng, device=rows.device)
    caption = torch.cat([rows[:, :1], vocabulary.words[chosen], vocabulary.end.expand(len(rows), 1)], dim=1)
    return torch.cat([caption, vocabulary.padding.expand(len(rows), rows.shape[1] - caption.shape[1])], dim=1)


def _inserted(rows: Tensor, changes: Changes, vocabulary: Vocabulary, rng: torch.Generator) -> Tensor:
    starts = _starts(rows, vocabulary)
    for _ in range(changes.repeat_words):
        word, length = _word(rows, starts, _lots(rows, rng))
        rows, starts = _insert(rows, starts, word, length, _lots(rows, rng), vocabulary)
    for _ in range(changes.random_numbers):
        number, length = _number(rows, vocabulary, rng)
        rows, starts = _insert(rows, starts, number, length, _lots(rows, rng), vocabulary)
    for _ in range(changes.random_tokens):
        chosen = torch.randint(len(vocabulary.words), (len(rows), 1), generator=rng, device=rows.device)
        length = torch.ones_like(chosen[:, 0])
        rows, starts = _insert(rows, starts, vocabulary.words[chosen], length, _lots(rows, rng), vocabulary)
    return rows


def _starts(rows: Tensor, vocabulary: Vocabulary) -> Tensor:
    """Where words begin, and where the caption ends, bool (B, L): all places where something can be put."""
    places = torch.arange(rows.shape[1], device=rows.device)
    # behind the last text, since in CLIP an unknown character is an end token, too
    end = torch.where(vocabulary.special[rows], 0, places).amax(1, keepdim=True) + 1
    after = torch.cat([torch.zeros_like(rows[:, :1], dtype=torch.bool), vocabulary.last[rows[:, :-1]]], dim=1)
    return (after | (places == 1) | (places == end)) & (places >= 1) & (places <= end)


def _nth(mask: Tensor, number: Tensor) -> Tensor:
    """Place of the number-th (from 0) mark of each row, (B,); 0 if there is none."""
    return (mask & (mask.cumsum(1) == number[:, None] + 1)).int().argmax(1)


def _word(rows: Tensor, starts: Tensor, lots: Tensor) -> tuple[Tensor, Tensor]:
    """One word of each caption, int64 (B, L) with anything behind it, and its length, (B,); 0 if there is no word."""
    count = starts.sum(1) - 1
    number = (lots * count).long()
    begin = _nth(starts, number)
    places = torch.arange(rows.shape[1], device=rows.device) + begin[:, None]
    length = torch.where(count > 0, _nth(starts, number + 1) - begin, 0)
    return rows.gather(1, places.clamp(max=rows.shape[1] - 1)), length


def _number(rows: Tensor, vocabulary: Vocabulary, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """A random number for each row, digit by digit, int64 (B, 5) with anything behind it, and its length, (B,)."""
    number = torch.randint(10**_DIGITS, (len(rows), 1), generator=rng, device=rows.device)
    places = torch.arange(_DIGITS, device=rows.device)
    length = (number >= 10**places).sum(1).clamp(min=1)
    powers = 10 ** (length[:, None] - 1 - places).clamp(min=0)
    return vocabulary.digits[number // powers % 10], length


def _insert(
    rows: Tensor, starts: Tensor, group: Tensor, length: Tensor, lots: Tensor, vocabulary: Vocabulary
) -> tuple[Tensor, Tensor]:
    """Put the first `length` tokens of a group between two words, before the first or behind the last one.

    Args:
        rows: int64 (B, L).
        starts: see `_starts`.
        group: int64 (B, G).
        length: (B,), at most G.
        lots: in [0, 1), (B,): which of the places.
        vocabulary: of the tokenizer.

    Returns:
        The rows, and their starts.
    """
    size, places = rows.shape[1], torch.arange(rows.shape[1], device=rows.device)
    at, length = _nth(starts, (lots * starts.sum(1)).long())[:, None], length[:, None]
    inside = size + (places - at).clamp(0, group.shape[1] - 1)
    behind = (places - length).clamp(min=0)
    source = torch.where(places < at, places, torch.where(places < at + length, inside, behind))
    begins = torch.arange(group.shape[1], device=rows.device).expand_as(group) == 0
    end = torch.where(starts, places, 0).amax(1, keepdim=True) + length
    over = (places == size - 1) & (end >= size - 1)
    rows = torch.where(over, vocabulary.end, torch.cat([rows, group], dim=1).gather(1, source))
    return rows, over | torch.cat([starts, begins], dim=1).gather(1, source)
