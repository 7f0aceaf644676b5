"""Colour emoji of a font as captioned images: Debian's Noto Color Emoji, captioned by their Unicode names.

The font keeps a PNG per glyph (table CBDT). A glyph stands for a code point (cmap), or for a sequence of them (the
ligatures of GSUB): flags, keycaps, and people joined with what they do.
"""

import io
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fontTools.ttLib import TTFont
from PIL import Image
from torch import Tensor

from iet_agc.config.data_settings import EmojiData
from iet_agc.data.conversion import convert
from iet_agc.data.decoding import strict_pillow
from iet_agc.data.image_set import ImageSet, Parts
from iet_agc.runtime.errors import UserError, in_words
from iet_agc.runtime.files import shown

__all__ = ["EMOJI_SHAPE", "emoji_font", "emoji_origin", "read_emoji"]

#: What emoji are brought to, unless the settings say otherwise.
EMOJI_SHAPE = (3, 32, 32)

#: Two pictures at most this far apart, a root of mean squared differences on [0, 1] at that size, are near copies.
_NEAR = 0.12
_LARGEST = 512

_NAME = "NotoColorEmoji.ttf"
_PLACES = (Path("/usr/share/fonts/truetype/noto"),)
_HELP = "apt-get install fonts-noto-color-emoji, or set data.root to such a font or its folder"

Sequence = tuple[int, ...]

_UNSAID = {0x200D, 0xFE0F}  # joiner, and the request for colours
_KEYCAP = 0x20E3
_LETTERS = range(0x1F1E6, 0x1F200)  # two of them are a flag
_TAGS = range(0xE0020, 0xE007F)  # so is a black flag with these letters
_UNKNOWN_FLAG = {0x1F3F4, 0xE007F}  # and that, without letters, is one in no use
_SKIN_TONES = set(range(0x1F3FB, 0x1F400))
#: Fonts know joined sequences from right to left, too: who stands first, and what never does.
_PEOPLE = {0x1F468, 0x1F469, 0x1F9D1}
_ATTRIBUTES = {
    *(0x2194, 0x2195, 0x2620, 0x2640, 0x2642, 0x26A7, 0x2744, 0x27A1, 0x2B1B),
    *(0x1F308, 0x1F32B, 0x1F4A8, 0x1F4AB, 0x1F5E8, 0x1F7E9, 0x1F7EB, 0x1F9BA, 0x1FA79),
}
#: Emoji since Unicode 15, for which Python 3.11 has no names: left out, so that every Python reads the same set.
_NEWER = {
    *(0x1F6D8, 0x1F6DC, 0x1FAF7, 0x1FAF8),
    *(*range(0x1FA75, 0x1FA78), *range(0x1FA87, 0x1FA90), *range(0x1FAAD, 0x1FAB0), *range(0x1FABB, 0x1FAC0)),
    *(*range(0x1FAC6, 0x1FAD0), *range(0x1FADA, 0x1FAE0), *range(0x1FAE8, 0x1FAF0)),
}


class _UnfitFontError(Exception):
    """What is wrong with a font, in words that follow its name."""


def read_emoji(data: EmojiData) -> Parts:
    """The emoji of a font on white, brought to `data.shape` as `conversion.convert` does, with their names as captions.

    A picture that stands for several sequences, such as the flag of Norway and of Svalbard, has several captions. Left
    out are skin tones, and near copies of a picture that stands before, so that a copy of a training image is telling:
    of the 3,925 pictures in Debian 12's font 1,650 stay, the same at any shape.

    `data.root` is the font, or the folder that holds NotoColorEmoji.ttf; None is Debian's package. No shape is
    3 x 32 x 32.

    Raises:
        UserError: no font there, or one that is damaged or has no colour bitmaps.
    """
    file = emoji_font(data.root_path)
    try:
        with strict_pillow(), TTFont(file, lazy=True) as font:
            captions, images = _named_pictures(font)
    except _UnfitFontError as error:
        raise UserError(f"{shown(file)} {error}: {_HELP}") from None
    except Exception as error:  # damaged tables and pictures make decoders raise nearly anything
        raise UserError(f"{shown(file)} cannot be read as a font, {in_words(error)}: {_HELP}") from error
    whole = ImageSet(images, "emoji", captions=captions)
    kept = whole.take(_distinct(convert(whole, EMOJI_SHAPE).images))
    return convert(kept, data.shape or EMOJI_SHAPE, data.resize), None


def emoji_origin(data: EmojiData) -> list[Path]:
    """The font file."""
    return [emoji_font(data.root_path)]


def emoji_font(root: Path | None) -> Path:
    """The font file.

    Raises:
        UserError: it is not where it is looked for.
    """
    if root is not None and root.is_file():
        return root
    places = [root] if root else list(_PLACES)
    for place in places:
        if (place / _NAME).is_file():
            return place / _NAME
    where = " or ".join(shown(place) for place in places)
    raise UserError(f"{where} holds no {_NAME}: {_HELP}")


# -- pictures


def _named_pictures(font: TTFont) -> tuple[tuple[tuple[str, ...], ...], Tensor]:
    """Captions and pixels, uint8 (N, 3, H, W), in the order of the first sequence of each."""
    if "CBDT" not in font or "CBLC" not in font:
        raise _UnfitFontError("has no colour bitmaps (tables CBDT and CBLC)")
    strikes: Any = zip(font["CBLC"].strikes, font["CBDT"].strikeData, strict=True)
    _, strike = max(strikes, key=lambda pair: pair[0].bitmapSizeTable.ppemY)
    found = sorted((sequences, glyph) for glyph, sequences in _sequences(font).items() if glyph in strike)
    if not found:
        raise _UnfitFontError("has no emoji with colour bitmaps")
    pictures = [_picture(strike[glyph].imageData) for _, glyph in found]
    captions = tuple(tuple(dict.fromkeys(map(_caption, sequences))) for sequences, _ in found)
    return captions, _on_white(pictures)


def _picture(content: bytes) -> Image.Image:
    picture = Image.open(io.BytesIO(content), formats=["PNG"])
    if max(picture.size) > _LARGEST:
        raise _UnfitFontError(f"has a bitmap of {picture.width} x {picture.height}, more than {_LARGEST} is not read")
    return picture.convert("RGBA")


def _on_white(pictures: list[Image.Image]) -> Tensor:
    """uint8 (N, 3, S, S): each in the middle of a white square that holds the largest."""
    edge = max(max(picture.size) for picture in pictures)
    pixels = np.empty((len(pictures), 3, edge, edge), np.uint8)
    for place, picture in zip(pixels, pictures, strict=True):
        square = Image.new("RGBA", (edge, edge), "white")
        square.alpha_composite(picture, ((edge - picture.width) // 2, (edge - picture.height) // 2))
        place[...] = np.asarray(square.convert("RGB")).transpose(2, 0, 1)
    return torch.from_numpy(pixels)


def _distinct(images: Tensor) -> Tensor:
    """Which images are no near copies of one that is kept before, int64 (M,)."""
    pixels = images.flatten(1).double() / 255
    squares = pixels.square().sum(1)
    distances = ((squares[:, None] + squares - 2 * pixels @ pixels.T).clamp(min=0) / pixels.shape[1]).sqrt()
    kept: list[int] = []
    for place, row in enumerate(distances):
        if not kept or row[kept].min() > _NEAR:
            kept.append(place)
    return torch.tensor(kept)


# -- names


def _sequences(font: TTFont) -> dict[str, list[Sequence]]:
    """The sequences of code points that have a name and no skin tone, sorted, by the glyph that they give."""
    found: dict[str, set[Sequence]] = {}
    for sequence, glyph in _glyphs(font):
        said = tuple(code for code in sequence if code not in _UNSAID)
        if said and set(said) != _UNKNOWN_FLAG and not _SKIN_TONES.intersection(said) and all(map(_is_named, said)):
            found.setdefault(glyph, set()).add(said)
    return {glyph: _one_way(sequences) for glyph, sequences in found.items()}


def _glyphs(font: TTFont) -> Iterator[tuple[Sequence, str]]:
    """Every sequence that gives a glyph, from cmap and from the ligatures of GSUB."""
    codes = {glyph: code for code, glyph in sorted((font.getBestCmap() or {}).items())}
    yield from (((code,), glyph) for glyph, code in codes.items())
    lookups: Any = font["GSUB"].table.LookupList.Lookup if "GSUB" in font else []
    for table in (table for lookup in lookups for table in lookup.SubTable):
        for first, ligatures in getattr(table, "ligatures", {}).items():
            for ligature in ligatures:
                parts = (first, *ligature.Component)
                if all(part in codes for part in parts):
                    yield tuple(codes[part] for part in parts), ligature.LigGlyph


def _is_named(code: int) -> bool:
    return code not in _NEWER and unicodedata.name(chr(code), "") != ""


def _one_way(sequences: Iterable[Sequence]) -> list[Sequence]:
    """Of sequences of the same code points the one from left to right; sorted."""
    ways: dict[Sequence, list[Sequence]] = {}
    for sequence in sequences:
        ways.setdefault(tuple(sorted(sequence)), []).append(sequence)
    return sorted(
        min(each, key=lambda way: (way[0] in _ATTRIBUTES, way[0] not in _PEOPLE, way)) for each in ways.values()
    )


def _caption(sequence: Sequence) -> str:
    """The name of a sequence in lower case, such as "woman, rocket", "flag n o" or "keycap, digit one"."""
    letters = "".join(chr(code - 0xE0000) for code in sequence if code in _TAGS)
    if len(sequence) == 2 and all(code in _LETTERS for code in sequence):
        letters = "".join(chr(code - _LETTERS[0] + ord("a")) for code in sequence)
    if letters:
        return " ".join(["flag", *letters])
    if sequence[1:] == (_KEYCAP,):
        return f"keycap, {_caption(sequence[:1])}"
    names = [unicodedata.name(chr(code)).lower().removeprefix("emoji component ") for code in sequence]
    return ", ".join(names)
