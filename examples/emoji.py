"""Which emoji are copied, told by name? Planted captions, other training captions and held-out ones, side by side.

python examples/emoji.py prompts RUN prompts.txt         # 24 of each kind in turn, for 'iet-agc sample RUN --prompts'
python examples/emoji.py table RUN [RUN ...]             # of RUN/samples and RUN/audit: copies, alignment, by kind
python examples/emoji.py seeds RUN [RUN ...]             # the same over seeds of each METHOD-SEED, and differences
python examples/emoji.py figure emoji.png RUN [RUN ...]  # the real images above samples of each run

Runs that are put side by side learnt from the same images.
"""

import csv
import json
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch

from iet_agc.auditing.memorized_prompts import planted_prompts
from iet_agc.auditing.schema import read_record
from iet_agc.config.run_folder import read_settings
from iet_agc.data.datasets.registry import load_dataset
from iet_agc.data.image_set import ImageSet
from iet_agc.metrics.alignment import alignment, group, ranks
from iet_agc.metrics.features import load_extractor
from iet_agc.metrics.intervals import clustered_share, difference, mean, share_over_runs
from iet_agc.metrics.similarity import directions
from iet_agc.sampling.sample_set import load_samples

KINDS = ("planted", "other", "held-out")


def image_sets(run: Path) -> tuple[ImageSet, ImageSet]:
    """What it was trained on, every image once, and what was held out."""
    return load_dataset(read_settings(run).data.without_copies())


def told(run: Path, train: ImageSet, held_out: ImageSet) -> dict[str, list[str]]:
    """As many prompts of each kind as images were planted, in the run's order; none is of two kinds."""
    prompts, planted = planted_prompts(run)
    known = {text for texts in train.captions or () for text in texts}
    fresh = [texts[0] for texts in held_out.captions or () if texts[0] not in known]
    return dict(zip(KINDS, (planted, prompts[len(planted) :], fresh[: len(planted)]), strict=True))


def write_prompts(run: Path, file: Path) -> None:
    in_turn = [text for texts in zip(*told(run, *image_sets(run)).values(), strict=True) for text in texts]
    file.write_text("\n".join(in_turn) + "\n", encoding="utf-8")


def table(runs: list[Path], network: str = "efficientnet-lite0") -> dict[str, dict[str, Any]]:
    """Of each run and kind: samples below the audit's calibrated cut, and the alignment of all with their prompts.

    Samples of one prompt are not independent: intervals take prompts as clusters.
    """
    extractor, sets, real = load_extractor(network), image_sets(runs[0]), {}
    kinds = told(runs[0], *sets)
    for name, images in zip(("train", "held-out"), sets, strict=True):
        captions = group([frozenset(texts) for texts in images.captions or ()])
        real[name] = directions(extractor.extract(images.images).features), captions
    found: dict[str, dict[str, Any]] = {}
    for run in runs:
        cut = read_record(run / "audit" / "audit.json").cut
        with (run / "audit" / "samples.csv").open(encoding="utf-8", newline="") as stream:
            rows = [(row["prompt"], float(row["ratio"])) for row in csv.DictReader(stream)]
        drawn, found[str(run)] = directions(extractor.extract(load_samples(run / "samples")[0].images).features), {}
        for kind, prompts in kinds.items():
            mine = [place for place, (prompt, _) in enumerate(rows) if prompt in prompts]
            references, captions = real["held-out" if kind == "held-out" else "train"]
            texts = [rows[place][0] for place in mine]
            copied = clustered_share([rows[place][1] < cut for place in mine], texts)
            aligned = alignment(ranks(drawn[mine], references, texts, captions), texts, captions)
            found[str(run)][kind] = {
                "copied": copied.model_dump(mode="json"),
                "alignment": aligned and aligned.model_dump(mode="json"),
            }
    return found


def over_seeds(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Of a table: copied share and alignment of each method over its seeds, and differences from the first method.

    A run is called METHOD-SEED. Intervals are as `iet-agc compare` makes them.
    """
    methods: dict[str, dict[str, dict[str, Any]]] = {}
    for run, kinds in found.items():
        method, _, seed = Path(run).name.rpartition("-")
        methods.setdefault(method, {})[seed] = kinds
    rows = {name: {kind: _of_method(runs, kind) for kind in KINDS} for name, runs in methods.items() if len(runs) > 1}
    apart = {
        f"{name} minus {first}": {kind: _difference(rows[name][kind], rows[first][kind]) for kind in KINDS}
        for place, first in enumerate(rows)
        for name in [*rows][place + 1 :]
    }
    return {"methods": rows, "differences": apart}


def _of_method(runs: dict[str, dict[str, Any]], kind: str) -> dict[str, Any]:
    copied = [kinds[kind]["copied"] for kinds in runs.values()]
    counts, totals = ([one[key] for one in copied] for key in ("count", "total"))
    prompts = (
        [(one["clusters"], one["design_effect"]) for one in copied]
        if all("clusters" in one for one in copied)
        else None
    )
    share = sum(one["share"] for one in copied) / len(copied)
    return {
        "seeds": [*runs],
        "copied": {"counts": counts, "share": share, "ci95": share_over_runs(counts, totals, prompts=prompts)},
        "alignment": _over([kinds[kind]["alignment"]["percentile"]["mean"] for kinds in runs.values()]),
    }


def _over(values: list[float]) -> dict[str, Any]:
    """Values of several runs, their mean and its interval."""
    return {"values": values} | mean(values).model_dump(mode="json")


def _difference(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Of shares, from the intervals of both; of alignments of the same seeds, Student's t over these."""
    apart, ci95 = difference(*((each["copied"]["share"], each["copied"]["ci95"]) for each in (one, other)))
    found: dict[str, Any] = {"copied": {"difference": apart, "ci95": ci95}}
    if one["seeds"] == other["seeds"]:
        pairs = zip(one["alignment"]["values"], other["alignment"]["values"], strict=True)
        found["alignment"] = _over([mine - theirs for mine, theirs in pairs])
    return found


def figure(file: Path, runs: list[Path], columns: int = 8) -> None:
    """The first prompts of each kind: the real image, and the first sample of each run."""
    real: dict[str, torch.Tensor] = {}
    sets = image_sets(runs[0])
    for images in reversed(sets):  # of a name that both have, the training image
        real |= {
            texts[0]: image for texts, image in reversed([*zip(images.captions or (), images.images, strict=True)])
        }
    rows = [("real", real)]
    for run in runs:
        samples = load_samples(run / "samples")[0]
        drawn = reversed([*zip(samples.captions or (), samples.images, strict=True)])
        rows.append((run.name, {texts[0]: image for texts, image in drawn}))
    kinds = told(runs[0], *sets)
    canvas = plt.figure(figsize=(columns * 1.05, len(KINDS) * len(rows) * 0.95), layout="constrained")
    parts: Any = canvas.subfigures(len(KINDS), 1)
    for part, (kind, prompts) in zip(parts, kinds.items(), strict=True):
        part.suptitle(f"{kind} captions", fontsize=10, fontweight="bold")
        grid = part.subplots(len(rows), columns, squeeze=False)
        for axes, (name, images) in zip(grid, rows, strict=True):
            axes[0].set_ylabel(name, fontsize=8)
            for ax, prompt in zip(axes, prompts, strict=False):
                ax.imshow(images[prompt].permute(1, 2, 0), interpolation="nearest")
                ax.set(xticks=[], yticks=[])
                if name == "real":
                    ax.set_title(prompt if len(prompt) < 20 else prompt[:17] + " ...", fontsize=6)
    canvas.savefig(file, dpi=90)


if __name__ == "__main__":
    verb, *places = sys.argv[1:] or [""]
    paths = [Path(place) for place in places]
    if verb == "prompts" and len(paths) == 2:
        write_prompts(*paths)
    elif verb == "table" and paths:
        print(json.dumps(table(paths), indent=1))
    elif verb == "seeds" and len(paths) > 1:
        print(json.dumps(over_seeds(table(paths)), indent=1))
    elif verb == "figure" and len(paths) > 1:
        figure(paths[0], paths[1:])
    else:
        sys.exit(__doc__)
