"""Attacks that are stopped, and what they leave."""

import json
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from iet_agc.auditing import attack_ways


@contextmanager
def stopped_after(parts: int) -> Generator[None]:
    """An attack in this block is interrupted when it has made so many parts."""
    made: list[str] = []
    plain = attack_ways.compute_parts

    def dies(folder: Any, name: str, total: int, length: int, work: Any, on_done: Any) -> None:
        def counts(items: slice) -> Any:
            if len(made) == parts:
                raise KeyboardInterrupt
            made.append(name)
            return work(items)

        plain(folder, name, total, length, counts, on_done)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attack_ways, "compute_parts", dies)
        with pytest.raises(KeyboardInterrupt):
            yield


def untimed(folder: Path) -> Any:
    """What a folder holds, without what depends on the time it took."""
    found = json.loads((folder / "attack.json").read_text(encoding="utf-8"))
    for each in found["found"]["attacks"]:
        del each["seconds"], each["per_hour"], each["times_sampling"]
    del found["seal"]
    return found, *((folder / name).read_bytes() for name in ("images.csv", "drawings.npz"))
