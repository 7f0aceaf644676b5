"""Packs of evidence for tests: one that is sound, and what someone who knows the format could do to it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import iet_agc
from iet_agc.auditing.pack_folder import MANIFEST, STATEMENT, files_below, statement_text
from iet_agc.runtime.seal import sealed, write_sealed
from tests.tiny_runs import settings

NUM_TRAIN = 1300


class Pooled(nn.Module):
    """A descriptor of a few numbers; TorchScript counts as made to find copies."""

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(images, (3, 3)).flatten(1) - 0.5


def audited_run(place: Path) -> iet_agc.Run:
    """A run of a second on digits, with samples and an audit in pixels and in the features of a descriptor."""
    torch.jit.script(Pooled()).save(str(place / "descriptor.pt"))
    run = iet_agc.train(settings(data__num_train=NUM_TRAIN), out=place / "run", quiet=True)
    samples = iet_agc.sample(run, 60, out=run.folder / "samples", steps=2, quiet=True)
    extractors = ["pixels", str(place / "descriptor.pt")]
    iet_agc.audit(run, samples, run, out=run.folder / "audit", extractors=extractors, quiet=True)
    return run


def content(pack: Path) -> dict[str, bytes]:
    """Every file of a pack."""
    return {name: (pack / name).read_bytes() for name in files_below(pack)}


def resealed(pack: Path) -> Path:
    """Write every digest again, as someone would who changes a pack and knows how it is made."""
    for file in (*pack.glob("audits/*/audit.json"), *pack.glob("attacks/*/attack.json")):
        written = json.loads(file.read_text())
        names = written.pop("seal")["files"]
        write_sealed(file, written, names)
    manifest = json.loads((pack / MANIFEST).read_text())
    manifest.pop("seal")
    files = [name for name in files_below(pack) if name not in (MANIFEST, STATEMENT)]
    for name in manifest["audits"]:
        record = json.loads((pack / "audits" / name / "audit.json").read_text())
        manifest["audits"][name]["images"] = record["sha256"]
    for name, told in manifest.get("attacks", {}).items():
        record = json.loads((pack / "attacks" / name / "attack.json").read_text())
        told |= {"images": record["images"], "weights": record["weights_sha256"]}
    hashes = sealed({}, pack, files)["seal"]["files"]
    (pack / STATEMENT).write_text(statement_text(manifest, hashes))
    write_sealed(pack / MANIFEST, manifest, [*files, STATEMENT])
    return pack


def edited(pack: Path, copy: Path, file: str, change: Callable[[Any], Any]) -> Path:
    """A copy of a pack in which a JSON file, an array file or a text is another one, with digests that agree."""
    shutil.copytree(pack, copy)
    place = copy / file
    if place.suffix == ".json":
        written = json.loads(place.read_text())
        change(written)
        place.write_text(json.dumps(written, indent=1, ensure_ascii=False) + "\n")
    elif place.suffix == ".npz":
        with np.load(place) as archive:
            arrays = dict(archive)
        change(arrays)
        np.savez(place, **arrays)
    else:
        text = place.read_text()
        assert change(text) != text, "the change changes nothing"
        place.write_text(change(text))
    return resealed(copy)
