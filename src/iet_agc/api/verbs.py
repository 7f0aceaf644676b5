"""The verbs of the command line as functions, on paths and on images in memory.

Images are, wherever a set of them is asked for, what `api.images` takes: a path, a name, a result, or images in memory.

Every result is a folder, so `out` is always asked for. It is what a killed call goes on from, what the same call finds
done, and the evidence that is handed over; a place chosen for you would be lost, or hold another run.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from iet_agc.api.images import Images, Place, named, sources
from iet_agc.api.results import Attack, Audit, Bench, Membership, Pack, Run, SampleSet, Shards, Verification
from iet_agc.runtime.errors import UserError
from iet_agc.runtime.paths import check_reported_places, is_watch
from iet_agc.runtime.silence import silenced

if TYPE_CHECKING:
    from iet_agc.auditing.guard import Guard
    from iet_agc.auditing.sources import Part
    from iet_agc.config.settings import Settings

__all__ = [
    "attack",
    "audit",
    "average",
    "bench",
    "card",
    "membership",
    "pack",
    "report",
    "sample",
    "shards",
    "train",
    "verify",
]


def train(
    preset: "str | Settings",
    images: "Images | None" = None,
    *,
    out: Place,
    settings: Mapping[str, object] | None = None,
    init: Place | None = None,
    quiet: bool = False,
) -> Run:
    """Train a model, or go on with it; see `iet-agc train`.

    Args:
        preset: its name, the path of a .toml file, or settings.
        images: what is trained on in place of the preset's own images, see `audit`: all of it, each as often as it
            stands there. A dataset's classes come along. Nothing is held out of it: give `audit` other real images.
        out: folder of the run. The same call again goes on from there, and leaves a finished run as it is.
        settings: to replace, such as {"train.seed": 1, "method.rounds": 20}; see `config.overrides.override`.
        init: train this model further: a run, a diffusers pipeline folder or a hub id.
        quiet: show no progress. What is shown goes to stderr.

    Raises:
        UserError: an unknown preset or setting, impossible values, images that cannot be used, or `out` holds another
            run.
        CheckFailed: training broke.
    """
    changes = dict(settings or {}) | ({} if init is None else {"init.model": os.fspath(init)})
    name, given = (None, None) if images is None else named(images, "images")
    chosen = _settings(preset, None if given else name, changes)

    from iet_agc.training.loop import start

    with silenced(quiet):
        start(chosen, Path(out), given=given)
    return Run(Path(out), given)


def sample(
    source: Place,
    num: int | None = None,
    *,
    out: Place,
    label: int | None = None,
    prompts: Sequence[str] = (),
    guard: "Images | None" = None,
    amg: "Images | None" = None,
    held_out: "Images | None" = None,
    flips: bool = False,
    file_format: Literal["npz", "png"] = "npz",
    device: Literal["auto", "cpu", "cuda"] = "auto",
    quiet: bool = False,
    **settings: object,
) -> SampleSet:
    """Draw images from a trained model; see `iet-agc sample`.

    Args:
        source: a finished run, or a diffusers pipeline folder.
        num: how many images; by default the run's sample.num.
        out: folder of the sample set. The same call again goes on from there, and leaves a whole set as it is.
        label: class of all images, of a class-conditional model; by default all in turn.
        prompts: of text-to-image, all in turn; by default the run's training captions.
        guard: draw again, with further seeds, what the audit would call a copy of these training images.
        amg: push images away from these training images while they are drawn (Anti-Memorization Guidance), with the
            weight `amg_strength` of the settings; not of text-to-image.
        held_out, flips: real images that set the cut of both, by default those that the run of `guard` or `amg` holds
            out; and whether mirrored copies count, too.
        file_format: one array, or a PNG per image.
        device: where to draw.
        quiet: show no progress.
        settings: others of section sample, such as steps=20, weights="ema" or first_seed=1000.

    Raises:
        UserError: no such model, impossible settings, or `out` holds something else.
        CheckFailed: the guard turns down nearly everything.
    """
    if guard is None and amg is None and (held_out is not None or flips):
        raise UserError("held_out and flips are those of a guard: give guard as well, or amg", "guard")
    asked = settings if num is None else settings | {"num": num}

    from iet_agc.sampling.sample_set import sample_run

    with silenced(quiet):
        guarded = None if guard is None else _guard(guard, held_out, flips)
        same = amg is guard or (isinstance(amg, str) and amg == guard)  # a training set is read once
        guided = guarded if same else None if amg is None else _guard(amg, held_out, flips)
        sample_run(
            Path(source),
            Path(out),
            asked,
            file_format=file_format,
            device=device,
            guard=guarded,
            amg=guided,
            label=label,
            prompts=prompts,
        )
    return SampleSet(Path(out))


def audit(
    train: "Images",
    samples: "Images",
    held_out: "Images | None" = None,
    *,
    out: Place,
    flips: bool = False,
    extractors: Sequence[str] = (),
    convert_to: tuple[int, int, int] | None = None,
    orient: bool = False,
    background: str | None = None,
    on_bad: Literal["fail", "skip"] = "fail",
    clip: str | None = None,
    groups: bool | Place = False,
    cache: Place | None = None,
    transformed: bool = False,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    download: bool = False,
    quiet: bool = False,
) -> Audit:
    """Measure how much of a sample set is copied from a training set; see `iet-agc audit`.

    Images are a path, the name of an image set such as "digits", a result, uint8 tensors or arrays (N, C, H, W), a list
    of PIL images, or a torch or Hugging Face dataset.

    Args:
        train: the training images; a run stands for what it was trained on, and tells what it saw and skipped.
        samples: the generated images.
        held_out: real images of the same kind that were not trained on, 99 or more; of a run, what it holds out.
            Without them nothing says what is chance, and the verdict is "cannot tell".
        out: folder of the audit. The same call again is over at once.
        flips: look for mirrored copies, too.
        extractors: networks in whose features copies are looked for, and quality is measured (the first), see
            `metrics.features.load_extractor`; by default one that suits the images' size.
        convert_to: (C, H, W) that every image is brought to.
        orient, background, on_bad: of folders, see `data.mending.Mending`.
        clip: CLIP model that scores samples by their prompts: a folder, or a hub id.
        groups: neighbours are groups of exact and near copies among the training images, so that a copy of an image
            with many near copies is found: True, those that are found here; or a folder of `iet-agc duplicates`, or a
            table of imagededup (.json) or fastdup (.csv).
        cache: folder in which the features of training and held-out images are kept, by their pixels and the network's
            weights: another audit against them computes those of its samples only.
        transformed: look for copies that were mirrored, shifted, cropped or made brighter or flatter, for halves and
            for blends of two, too; one cut for all of them, which needs `held_out`.
        device: where to compute.
        download: fetch weights of published networks where they are missing.
        quiet: show no progress.

    Raises:
        UserError: images that cannot be used, or sizes that differ; or `out` holds another audit.
    """
    from iet_agc.auditing.finished import Asked, finished_audit
    from iet_agc.auditing.run import audit_sources, fingerprints
    from iet_agc.data.mending import Mending

    parts: dict[Part, Images | None] = {"train": train, "samples": samples, "held-out": held_out}
    names, given = sources(parts)
    mending = Mending(orient, background, on_bad)
    sets = names["train"], names["samples"], names.get("held-out")
    asked = Asked(
        *sets,
        Path(out),
        flips,
        extractors,
        convert_to,
        mending,
        clip,
        device,
        groups=groups if isinstance(groups, bool) else os.fspath(groups),
        transformed=transformed,
    )
    with silenced(quiet):
        if finished_audit(asked, given=fingerprints(given)) is None:
            kept = None if cache is None else Path(cache)
            audit_sources(asked, cache=kept, download=download, given=given)
    return Audit(Path(out))


def membership(
    source: Place,
    train: "Images | None" = None,
    held_out: "Images | None" = None,
    *,
    out: Place,
    num: int = 1000,
    draws: int = 100,
    weights: Literal["raw", "ema"] | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    quiet: bool = False,
) -> Membership:
    """Tell whether losses give away which images a model was trained on; see `iet-agc membership`.

    Args:
        source: a finished run, or a diffusers pipeline folder of a model over pixels.
        train: the training images, see `audit`; by default those of the run.
        held_out: real images of the same kind that were not trained on; by default those that the run, or `train`,
            holds out.
        out: folder of the result. The same call again goes on from there, and leaves a whole one as it is.
        num: at most so many images of either kind.
        draws: losses of each image, by as much noise.
        weights: of a run; by default those that it samples with.
        device: where to compute.
        quiet: show no progress.

    Raises:
        UserError: no such model, images that do not fit it, fewer than 20 of either kind, or `out` holds something
            else.
    """
    from iet_agc.auditing.membership import infer_members

    if train is None and isinstance(source, Run):
        train = source  # which brings images along that it was given in memory
    names, given = sources({"train": train, "held-out": held_out})
    with silenced(quiet):
        infer_members(
            Path(source),
            Path(out),
            names.get("train"),
            names.get("held-out"),
            num_images=num,
            draws=draws,
            weights=weights,
            device=device,
            given=given,
        )
    return Membership(Path(out))


def attack(
    source: Place,
    train: "Images | None" = None,
    held_out: "Images | None" = None,
    *,
    out: Place,
    budget: int = 2000,
    steps: int | None = None,
    weights: Literal["raw", "ema"] | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    quiet: bool = False,
) -> Attack:
    """Look for copies as an adversary would, with held-out images as the control; see `iet-agc attack`.

    Of text-to-image captions are ranked, and embeddings fitted to images, too, where the pipeline has one text encoder.

    Args:
        source: a finished run, or a diffusers pipeline folder; one of text-to-image takes images with captions.
        train: the training images, see `audit`; by default those of the run.
        held_out: real images of the same kind that were not trained on, at least 198; by default those that the run, or
            `train`, holds out.
        out: folder of the result. The same call again goes on from there, and leaves a whole one as it is.
        budget: plain samples. Every other way takes at most as many evaluations of the model, or those of one target.
        steps: of a plain sample; by default those of the run, or 50.
        weights: of a run; by default those that it samples with.
        device: where to compute.
        quiet: show no progress.

    Raises:
        UserError: no such model, images that do not fit it, too few of either kind, or `out` holds something else.
    """
    from iet_agc.auditing.attack import attack_model

    if train is None and isinstance(source, Run):
        train = source  # which brings images along that it was given in memory
    names, given = sources({"train": train, "held-out": held_out})
    with silenced(quiet):
        attack_model(
            Path(source),
            Path(out),
            names.get("train"),
            names.get("held-out"),
            budget=budget,
            steps=steps,
            weights=weights,
            device=device,
            given=given,
        )
    return Attack(Path(out))


def report(audits: Place | Sequence[Place], out: Place | None = None) -> Path:
    """Turn audits into one HTML page, or what a watch has found; see `iet-agc report`.

    Args:
        audits: one or several, results or folders; or the folder of one `MemorizationWatch`.
        out: the page; by default report.html in the folder of the first.

    Returns:
        The page's path.

    Raises:
        UserError: a folder that holds no audit, or a damaged one; or `out` is there and no such page.
    """
    folders = _folders(audits)
    if not folders:
        raise UserError("a report needs at least one audit: give a folder that 'iet-agc audit' wrote", "audits")
    check_reported_places(folders)
    file = Path(out) if out else folders[0] / "report.html"
    if is_watch(folders[0]):
        from iet_agc.auditing.curve import report_watch

        return report_watch(folders[0], file)
    from iet_agc.reporting.audit_page import write_report

    return write_report({str(folder): folder for folder in folders}, file)


def card(run: Place, audit: Place | Sequence[Place] = (), out: Place | None = None) -> Path:
    """Write the model card of a run, with Hugging Face's metadata; see `iet-agc card`.

    Args:
        run: a finished run.
        audit: one or several audits of its samples, results or folders; without any, the card says that the run was not
            audited.
        out: the card; by default README.md in the run's folder, beside the weights. A card that was written here before
            is replaced.

    Returns:
        The card's path.

    Raises:
        UserError: no finished run, or its weights are not as they were exported; an audit against other training
            images, or of samples that other weights drew; or `out` is there and is no card of ours.
    """
    from iet_agc.auditing.model_card import write_card

    return Path(write_card(Path(run), _folders(audit), Path(out) if out else None)["card"])


def pack(audits: Place | Sequence[Place], *, out: Place, attacks: Place | Sequence[Place] = ()) -> Pack:
    """Put audits into a folder that is handed over, and that anyone can check; see `iet-agc pack`.

    Args:
        audits: one or several, results or folders. A run that an audit names as its training set, or in whose folder it
            lies, comes along, with its model card.
        out: folder of the pack. The same call again leaves a whole one as it is.
        attacks: one or several on the weights that were audited, results or folders.

    Raises:
        UserError: no audit, or a damaged one; a run that is not finished; an attack on another model; or `out` holds
            something else.
    """
    from iet_agc.auditing.pack import pack_audits

    pack_audits(_folders(audits), Path(out), _folders(attacks))
    return Pack(Path(out))


def verify(
    pack: Place,
    train: "Images | None" = None,
    samples: "Images | None" = None,
    held_out: "Images | None" = None,
    *,
    extractors: Sequence[Place] = (),
    digest: str | None = None,
    quiet: bool = False,
) -> Verification:
    """Check a pack, from anyone: every byte, and every number counted again; see `iet-agc verify`.

    Args:
        pack: its folder, or the result of `pack`.
        train, samples, held_out: see `audit`; with these, distances and quality are measured again as well.
        extractors: TorchScript or ONNX networks that the audit used; loaded only if they have the SHA-256 that is told
            of them.
        digest: SHA-256 that `pack` told; the pack has to be that one.
        quiet: show no progress.

    Raises:
        UserError: it is no pack, or a hostile one; training images without samples, or samples without these.
    """
    from iet_agc.auditing.verify import Images as Sources
    from iet_agc.auditing.verify import verify_pack

    if (train is None) != (samples is None) or (held_out is not None and train is None):
        raise UserError("to measure again, give train and samples, and held_out where the audit had some", "train")
    images = None
    if train is not None:
        names, given = sources({"train": train, "samples": samples, "held-out": held_out})
        images = Sources(names["train"], names["samples"], names.get("held-out"), given, _folders(extractors))
    with silenced(quiet):
        return Verification.of(verify_pack(Path(pack), images, digest))


def _folders(places: Place | Sequence[Place]) -> list[Path]:
    """One place or several."""
    return [Path(each) for each in ([places] if isinstance(places, str | os.PathLike) else places)]


def bench(board: Place, *, out: Place, jobs: int = 1, quiet: bool = False) -> Bench:
    """Train, sample and audit every method of a board, and compare them; see `iet-agc bench`.

    Args:
        board: the path of a .toml file, see `config.board`, or the name of one that comes with the package.
        out: folder of the runs, board.json, board.csv and board.html. The same call again goes on, and tries runs again
            that failed.
        jobs: runs side by side, in as many processes; with 2 or more a script needs `if __name__ == "__main__":`.
        quiet: show no progress.

    Returns:
        The board, in which runs that failed are named.

    Raises:
        UserError: a board that is none, or impossible; or `out` holds another one.
        CheckFailed: the system ended a process.
    """
    from iet_agc.api.bench import run_board
    from iet_agc.config.board import load_board

    with silenced(quiet):
        run_board(load_board(os.fspath(board)), Path(out), jobs)
    return Bench(Path(out))


def shards(
    source: Place,
    members: int,
    *,
    out: Place,
    seed: int = 0,
    keep_together: Literal["exact", "near"] | None = None,
    lists_only: bool = False,
    on_bad: Literal["fail", "skip"] = "fail",
    quiet: bool = False,
) -> Shards:
    """Cut an image set on disk into shards, for a trainer that knows nothing of them; see `iet-agc shards`.

    Args:
        source: a folder of images at any depth, or an .npz or .npy file, whose shards are lists only. Images in memory
            are cut by `partition`.
        members: how many shards. Each has the same share of each class, which is the first subfolder of an image.
        out: folder of the result. The same call again is over at once.
        seed: what shuffles.
        keep_together: copies that go to one shard: "exact", equal pixel by pixel, or "near"; None looks at no pixels.
        lists_only: write lists of paths, and no folders of links.
        on_bad: "fail" refuses files that cannot be images, or cannot be decoded where that is needed; "skip" leaves
            them out of all shards.
        quiet: show no progress.

    Raises:
        UserError: no images, fewer than shards, captions that do not match them, or `out` holds something else.
    """
    from iet_agc.data.shards import cut_shards

    with silenced(quiet):
        cut_shards(Path(source), Path(out), members, seed, keep_together, lists_only=lists_only, on_bad=on_bad)
    return Shards(Path(out))


def average(
    models: Sequence[Place],
    *,
    out: Place,
    weights: "Sequence[float] | Place | None" = None,
    lora: Literal["factors", "exact"] = "factors",
    quiet: bool = False,
) -> Path:
    """Write the weighted mean of models that other programs trained; see `iet-agc average`.

    State dicts in memory are averaged by `average_states`, which this does tensor by tensor.

    Args:
        models: diffusers pipelines, folders of a model (config.json and safetensors), or .safetensors files: LoRAs,
            checkpoints. All of one kind.
        out: the mean: a folder, or of files a .safetensors file. The same call again leaves it as it is.
        weights: one positive number per model, or a result of `shards`, whose sizes they are; by default all alike.
        lora: of LoRA files: the mean of A and that of B, which is not the mean of B A; or that mean, "exact", of as
            many times the rank as there are models.
        quiet: show no progress.

    Returns:
        The path of the mean.

    Raises:
        UserError: models that do not match, weights that are not finite, pickles, or `out` holds something else.
    """
    from iet_agc.data.shards import shard_sizes
    from iet_agc.training.average import average_models

    sizes = shard_sizes(Path(weights)) if isinstance(weights, str | os.PathLike) else weights
    with silenced(quiet):
        average_models(_folders(models), Path(out), sizes, lora)
    return Path(out)


def _settings(preset: "str | Settings", root: str | None, changes: Mapping[str, object]) -> "Settings":
    """The settings of a run; with `root`, of images that lie there, all of them and none planted unless asked for."""
    from iet_agc.config.overrides import customized
    from iet_agc.config.presets import load_preset

    base = load_preset(preset) if isinstance(preset, str) else preset
    if root is not None:
        folder = {"data.name": "folder", "data.root": root, "data.num_train": None, "data.planted_images": 0}
        changes = folder | dict(changes)
    return customized(base, changes)


def _guard(train: "Images", held_out: "Images | None", flips: bool) -> "Guard":
    from iet_agc.auditing.sources import load_guard

    names, given = sources({"train": train, "held-out": held_out})
    return load_guard(names["train"], names.get("held-out"), flips, given)
