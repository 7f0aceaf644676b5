"""The life of a result folder, the same for all that is made in parts: sample sets, audits, detections.

free        not there, or empty
claimed     .parts/about.json says what is being made; finished parts are beside it, and a kill loses none
whole       the mark, a JSON file of the folder's own, is there and sealed; it is written last

The same call again goes on from wherever a kill left it, leaves a whole folder as it is, and makes a damaged one again.
A call that would make something else is refused before anything is written. One program at a time is at work.
"""

import json
import shutil
from collections.abc import Collection, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from iet_agc.runtime import distributed
from iet_agc.runtime.errors import UserError
from iet_agc.runtime.files import check_ours, replace_text, shown
from iet_agc.runtime.progress import say
from iet_agc.runtime.reading import read_object
from iet_agc.runtime.seal import damaged, is_sealed, write_sealed

__all__ = ["ResultFolder"]

_PARTS, _ABOUT = ".parts", "about.json"

#: Values of more characters are not shown in a message.
_SHOWN = 40


@dataclass(frozen=True)
class ResultFolder:
    """A folder, and what it is a folder of.

    Attributes:
        place: of the folder; may not exist yet.
        mark: name of its JSON file.
        what: it is, for people, such as "sample set".
        inside: the name in the mark below which it says what it was made from; None: beside everything else.
        words: how messages call what it was made from, by name, in the plural; others are called by their names.
        left: what a kill may leave beside parts where there is no mark.
    """

    place: Path
    mark: str
    what: str
    inside: str | None = None
    words: Mapping[str, str] = field(default_factory=dict)
    left: Collection[str] = ()

    @property
    def parts(self) -> Path:
        """Where parts are while it is made."""
        return self.place / _PARTS

    @property
    def is_whole(self) -> bool:
        """Whether it was finished; not whether it is as it was then."""
        return (self.place / self.mark).exists()

    @property
    def is_claimed(self) -> bool:
        """Whether it is being made."""
        return (self.parts / _ABOUT).exists()

    def check(self, about: Mapping[str, Any]) -> None:
        """Refuse a folder that holds something else, or that was made from something else. Writes nothing.

        Args:
            about: what it is to be made from, JSON values only.

        Raises:
            UserError: it says what differs.
        """
        mark = self.mark if self.is_whole else f"{_PARTS}/{_ABOUT}"
        check_ours(self.place, mark, {_PARTS, *self.left}, self.what)
        for file, inside in ((self.place / self.mark, self.inside), (self.parts / _ABOUT, None)):
            if file.exists():
                self._check_same(file, inside, _as_json(about))

    def _check_same(self, file: Path, inside: str | None, about: Mapping[str, Any]) -> None:
        there = read_object(file, f"remove {shown(self.place)}, or choose another output")
        there = there if inside is None else there.get(inside)
        if not isinstance(there, dict):
            raise UserError(f"{shown(file)} does not say what it is an {self.what} of: choose another output", "out")
        if odd := next((name for name in about if there.get(name) != about[name]), None):
            change = self._change(odd, there.get(odd), about[odd])
            raise UserError(f"{shown(self.place)} holds another {self.what} ({change}): choose another output", "out")

    def _change(self, name: str, there: object, now: object) -> str:
        """What differs, in words; with both values where they are short."""
        if name in self.words or max(len(str(value)) for value in (there, now)) > _SHOWN:
            return f"of other {self.words.get(name, name)}"
        return f"{name} is {there}, not {now}"

    @contextmanager
    def at_work(self, about: Mapping[str, Any], anew: bool = False) -> Generator[bool]:
        """Within it this program, with all its processes, is alone at work there, and the folder is claimed.

        Args:
            about: what it is made from, and what parts follow from besides; parts of anything else are removed.
            anew: make it again where it is whole; it stays there until it is replaced.

        Yields:
            Whether there is anything to do; there is, too, where it is whole but not as it was written, or not sealed.

        Raises:
            UserError: another program is at work there.
        """
        with distributed.alone_in(self.place):
            if distributed.rank() == 0:
                self._claim(_as_json(about), anew)
            distributed.barrier()
            yield self.is_claimed
            distributed.barrier()

    def _claim(self, about: Mapping[str, Any], anew: bool) -> None:
        mark, claim = self.place / self.mark, self.parts / _ABOUT
        if not anew and self.is_whole:
            content = read_object(mark, "remove it")
            odd = list(damaged(mark, content, None))
            if not odd and is_sealed(content):
                self.drop_parts()
                return
            reason = f"{shown(odd[0])} is not as it was written" if odd else f"{shown(mark)} has no digests"
            say(f"{reason}: the {self.what} is made again")
        if self.parts.exists() and not (claim.exists() and read_object(claim, f"remove {shown(self.parts)}") == about):
            shutil.rmtree(self.parts)
        self.parts.mkdir(exist_ok=True)
        replace_text(claim, json.dumps(about) + "\n")
        if not anew:
            mark.unlink(missing_ok=True)

    def finish(self, content: Mapping[str, Any], files: Collection[str]) -> None:
        """Write the mark, with which it is whole; by one process.

        Args:
            content: of the mark, with what it was made from.
            files: paths below the folder that were written, and are sealed with it.
        """
        write_sealed(self.place / self.mark, content, files)
        self.drop_parts()

    def drop_parts(self) -> None:
        """Remove what is only needed while it is made."""
        shutil.rmtree(self.parts, ignore_errors=True)


def _as_json(value: Any) -> Any:
    """What JSON reads back: tuples are lists there."""
    return json.loads(json.dumps(value, allow_nan=False))
