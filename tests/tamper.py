"""A thousand changes of single bytes anywhere in a pack, each of which has to be named: `make tamper`.

    python -m tests.tamper [CASES] [SEED]

Bytes are drawn evenly from all files of a pack of a small run. It prints how many were named, and every one that was
not; exit status 1 if there is one.
"""

import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import iet_agc
from iet_agc.auditing.verify import verify_pack
from tests.packs import audited_run, content

__all__ = ["unnamed"]


def unnamed(pack: Path, cases: int, seed: int) -> Iterator[str]:
    """Change a byte, check, and put it back; tells of each change that was not named.

    Args:
        pack: a sound one.
        cases: how many changes.
        seed: of what is drawn.
    """
    rng, files = random.Random(seed), content(pack)
    for name in rng.choices([*files], [len(each) for each in files.values()], k=cases):
        at, changed = rng.randrange(len(files[name])), bytearray(files[name])
        changed[at] ^= rng.randrange(1, 256)
        (pack / name).write_bytes(changed)
        found = verify_pack(pack)
        if name not in [each["file"] for each in found["changed"]]:
            yield f"{name}, byte {at}: {files[name][at]:#04x} as {changed[at]:#04x}"
        (pack / name).write_bytes(files[name])


def _main() -> int:
    given = [int(word) for word in sys.argv[1:]]
    cases, seed = [*given, *(1000, 0)[len(given) :]]
    with tempfile.TemporaryDirectory() as place:
        run = audited_run(Path(place))
        attack = iet_agc.attack(run, out=Path(place) / "attack", budget=20, steps=2, quiet=True)
        pack = iet_agc.pack(run.folder / "audit", out=Path(place) / "pack", attacks=attack).folder
        missed = [*unnamed(pack, cases, seed)]
        sound = verify_pack(pack)["sound"]
    print("\n".join([*missed, f"{cases - len(missed):,} of {cases:,} changed bytes were named; sound again: {sound}"]))
    return int(bool(missed) or not sound)


if __name__ == "__main__":
    sys.exit(_main())
