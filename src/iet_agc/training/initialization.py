"""What training starts from: random weights, or those of a run, a diffusers pipeline folder or a model of the hub.

A model that is started from keeps its own architecture, down to conventions that no setting names (padding, epsilons,
order of sine and cosine). The settings must describe it; of its own only the dropout may differ. Of its scheduler only
the noise schedule matters.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from torch import Tensor, nn

from iet_agc.config.run_folder import is_run
from iet_agc.config.settings import ModelSettings, Settings
from iet_agc.diffusion.dit import build_dit, with_classes_kept
from iet_agc.diffusion.dropout import with_batch_dropout
from iet_agc.diffusion.process import Scheduler, abar_of, is_flow, scheduler_for
from iet_agc.diffusion.unet import Network, build_unet, image_shape, is_dit, load_pipeline, num_classes, pipeline_index
from iet_agc.runtime.errors import UserError, in_words
from iet_agc.runtime.paths import check_model_name
from iet_agc.runtime.reading import read_object
from iet_agc.runtime.seeds import kept_generators, seeded
from iet_agc.training.identity import check_pipeline

__all__ = ["Initial", "check_digest", "commit_of", "digest_of", "folders_of", "initial_weights"]

#: What is fetched of a model of the hub over pixels, first its description, then its weights: no pickles.
_DESCRIPTION = {
    "UNet2DModel": ["model_index.json", "config.json", "scheduler_config.json", "unet/*.json", "scheduler/*.json"],
    "DiTTransformer2DModel": ["model_index.json", "transformer/*.json", "scheduler/*.json"],
}
_WEIGHTS = {
    "UNet2DModel": ["diffusion_pytorch_model*.safetensors", "unet/diffusion_pytorch_model*.safetensors"],
    "DiTTransformer2DModel": ["transformer/diffusion_pytorch_model*.safetensors"],
}
#: No second copies in half precision, or of weights that were not averaged.
_UNWANTED = ["*.fp16.*", "*.fp16-*", "*.non_ema.*"]


@dataclass(frozen=True)
class Initial:
    """What every member starts from.

    Attributes:
        raw: the model.
        ema: where its average starts; of a run, the run's average, otherwise the model itself.
        sha256: hash of both, architecture included; None of random weights.
        revision: the commit of a model of the hub.
    """

    raw: nn.Module
    ema: nn.Module
    sha256: str | None = None
    revision: str | None = None


def initial_weights(settings: Settings, shape: tuple[int, int, int]) -> Initial:
    """The model that the settings say, random or that of `init.model`.

    Args:
        settings: of the run to be.
        shape: (C, H, W) of the training images, H = W.

    Raises:
        UserError: an impossible architecture; no such model, or a hash without one; a model of other images,
            another architecture, other classes or another noise schedule than the settings say, or with another hash
            than `init.sha256`.
    """
    if settings.init.model is None:
        for name in ("sha256", "revision"):
            if (value := getattr(settings.init, name)) is not None:
                raise UserError(f"init.{name} {value} is that of a model: say which", "init")
        with seeded("weights", settings.train.seed):
            fresh = _built(settings, shape)
        return Initial(fresh, fresh)
    kind = "DiTTransformer2DModel" if settings.model.network == "dit" else "UNet2DModel"
    folders = folders_of(settings.init.model, kind, settings.init.revision)
    models = [_fitting(folder, settings, shape) for folder in folders]
    digest = digest_of([(dict(model.config), model.state_dict()) for model in models])
    check_digest(settings, digest)
    return Initial(models[0], models[-1], digest, commit_of(settings.init.model, folders[0]))


def _built(settings: Settings, shape: tuple[int, int, int]) -> Network:
    """A random network; of images whose size is anybody's, one that does not fit is told with what would."""
    build = build_dit if settings.model.network == "dit" else build_unet
    try:
        return build(shape[1], shape[0], **settings.model.architecture())
    except UserError as error:
        if settings.data.is_what_lies_there:
            raise UserError(f"{error}; 'iet-agc init FOLDER' writes settings with a network that fits") from None
        raise


def check_digest(settings: Settings, digest: str) -> None:
    """Refuse a model whose hash is not the one that the settings say, if they say one.

    Raises:
        UserError: it is another one.
    """
    if settings.init.sha256 not in (None, digest):
        raise UserError(f"{settings.init.model} has the hash {digest}, init.sha256 is {settings.init.sha256}")


def folders_of(name: str, kind: str = "UNet2DModel", revision: str | None = None) -> list[Path]:
    """The pipeline folders of a model: of a run two, raw and ema.

    Args:
        name: a run, a folder, or a hub id, which is fetched.
        kind: class of its network, or "text-to-image"; of a hub model it is looked at before weights are fetched.
        revision: of a hub model, its branch, tag or commit; None is "main".

    Raises:
        UserError: no such model, or one of a run that is not as it was exported.
    """
    if not name:
        raise UserError("this preset trains a model further: say which", "init")
    path = Path(name)
    if is_run(path):
        folders = [path / "raw", path / "ema"]
        if not all(folder.is_dir() for folder in folders):
            raise UserError(f"{path} is not finished: run the same 'iet-agc train' again to finish it")
    else:
        folders = [path] if path.exists() else []
    if folders and revision:
        raise UserError(
            f"init.revision {revision!r} has no effect on {name}, which is no model of the hub: leave it out"
        )
    for folder in folders:
        check_pipeline(folder)
    return folders or [_of_hub(name, kind, revision)]


def commit_of(name: str, folder: Path) -> str | None:
    """The commit of a model of the hub, as the place in the hub's cache into which it was fetched says."""
    return folder.name if not Path(name).exists() and folder.parent.name == "snapshots" else None


def _of_hub(name: str, kind: str, revision: str | None) -> Path:
    """The folder of a model of the hub, whose description is looked at before its weights are fetched."""
    check_model_name(name)
    if kind == "text-to-image":
        return _text_pipeline_of_hub(name, revision)
    index = _fetched(name, _DESCRIPTION[kind], revision) / "model_index.json"
    part, words = ("transformer", "transformer") if kind == "DiTTransformer2DModel" else ("unet", "U-Net")
    network = read_object(index).get(part) if index.is_file() else None
    if network != ["diffusers", kind]:  # said before gigabytes are fetched
        raise UserError(f"{name} of the hub is no pipeline with a {kind}: its {words} is {network}")
    return _fetched(name, _DESCRIPTION[kind] + _WEIGHTS[kind], revision)


def _text_pipeline_of_hub(name: str, revision: str | None) -> Path:
    """As `_of_hub`, of a pipeline of a family that is known."""
    from iet_agc.text_to_image.families import FAMILIES, family_of

    parts = sorted({part for family in FAMILIES for part in family.CLASSES})
    description = ["model_index.json", *(f"{part}/*.json" for part in parts)]
    description += [f"{part}/merges.txt" for part in parts if part.startswith("tokenizer")]
    folder = _fetched(name, description, revision)
    index = pipeline_index(folder)
    if not index:
        raise UserError(f"{name} of the hub is no diffusers pipeline: it has no model_index.json")
    family = family_of(f"{name} of the hub", index)
    weights = [f"{part}/diffusion_pytorch_model*.safetensors" for part in (family.DENOISER, "vae")]
    weights += [f"{part}/model*.safetensors" for part in family.TOKENIZERS]
    return _fetched(name, description + weights, revision)


def _fetched(name: str, patterns: list[str], revision: str | None) -> Path:
    """The folder into which files of a model of the hub were fetched, now or earlier."""
    try:
        found = snapshot_download(name, revision=revision, allow_patterns=patterns, ignore_patterns=_UNWANTED)
        return Path(found)
    except Exception as error:  # of the hub, of its client, or of the network
        raise UserError(f"{name} is no folder, and the hub does not give it: {in_words(error)}") from error


def _fitting(folder: Path, settings: Settings, shape: tuple[int, int, int]) -> Network:
    """The model in a pipeline folder, if it is one that these settings can go on from, with their dropout."""
    model, scheduler = load_pipeline(folder)
    _check_images(folder, model, shape)
    for name, theirs in _described(model).items():
        ours = getattr(settings.model, name)
        if theirs != (tuple(sorted(ours, reverse=True)) if name == "attention" else ours):
            raise UserError(
                f"{folder} has model.{name} {_shown(theirs)}, the settings say {_shown(ours)}: "
                f"set model.{name} {_shown(theirs)}, or choose another model",
                "init",
            )
    _check_schedule(folder, scheduler, scheduler_for(settings.model.objective))
    return _with_dropout(model, settings.model)


def _check_images(folder: Path, model: Network, shape: tuple[int, int, int]) -> None:
    out: int = model.config.out_channels  # pyright: ignore[reportAttributeAccessIssue]
    if image_shape(model) != shape:
        theirs, ours = (" x ".join(map(str, size)) for size in (image_shape(model), shape))
        raise UserError(
            f"{folder} draws images of {theirs}, the training images are {ours}: choose another model", "init"
        )
    if out != shape[0]:
        raise UserError(f"{folder} predicts {out} channels for {shape[0]}: only noise can be predicted")


def _described(model: Network) -> dict[str, Any]:
    """The settings of section `model` that a model has, without its dropout."""
    config: Any = model.config
    if is_dit(model):
        heads: int = config.num_attention_heads
        return {
            "network": "dit",
            "patch_size": config.patch_size,
            "width": heads * config.attention_head_dim,
            "depth": config.num_layers,
            "heads": heads,
            "classes": num_classes(model),
        }
    first = config.block_out_channels[0]
    attends = ["Attn" in kind for kind in config.down_block_types]
    return {
        "network": "unet",
        "channels": first,
        "multipliers": tuple(width / first for width in config.block_out_channels),
        "blocks": config.layers_per_block,
        "attention": tuple(config.sample_size // 2**level for level, there in enumerate(attends) if there),
        "groups": config.norm_num_groups,
        "classes": num_classes(model),
    }


def _shown(value: Any) -> str:
    """As `settings.override` takes it."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ",".join(f"{part:g}" for part in value) or "[]"
    return "none" if value is None else str(value)


def _check_schedule(folder: Path, theirs: Scheduler, ours: Scheduler) -> None:
    """Refuse other noise levels or another target; how a scheduler samples does not matter."""
    if is_flow(ours) != is_flow(theirs):
        learned, asked = ("flow", "noise") if is_flow(theirs) else ("noise", "flow")
        raise UserError(
            f"{folder} has model.objective {learned}, the settings say {asked}: set model.objective {learned}, or "
            "choose another model",
            "init",
        )
    levels = abar_of(ours), abar_of(theirs)
    same = levels[0].shape == levels[1].shape and torch.allclose(*levels, rtol=1e-4, atol=1e-7)
    if not same or _schedule(ours)[1] != _schedule(theirs)[1]:
        words = [f"{noise} and predicts {target}" for noise, target in map(_schedule, (theirs, ours))]
        raise UserError(
            f"{folder} has a noise schedule {words[0]}, training here {words[1]}: choose another model", "init"
        )


def _schedule(scheduler: Scheduler) -> tuple[str, str]:
    config: Any = scheduler.config
    if is_flow(scheduler):
        return (
            f"straight, shift {config.shift:g} over {config.num_train_timesteps} timesteps",
            "the direction of a flow",
        )
    given = "given betas" if config.trained_betas is not None else config.beta_schedule
    rescaled = ", rescaled to zero signal at the end" if config.rescale_betas_zero_snr else ""
    ends = f"{config.beta_start:g} to {config.beta_end:g} over {config.num_train_timesteps} timesteps"
    return f"{given}, {ends}{rescaled}", config.prediction_type


def _with_dropout(model: Network, settings: ModelSettings) -> Network:
    """The same model with the dropout of the settings, its configuration included."""
    with kept_generators():
        changed: Any = type(model).from_config(model.config, dropout=settings.dropout)
    changed.load_state_dict(model.state_dict())
    return with_batch_dropout(with_classes_kept(changed))


def digest_of(models: Sequence[tuple[dict[str, Any], dict[str, Tensor]]]) -> str:
    """SHA-256 of (configuration, weights) of models, whatever the files that they come in."""
    digest = hashlib.sha256()
    for given, weights in models:
        config = {name: value for name, value in given.items() if name[0] != "_" and name != "dropout"}
        digest.update(json.dumps(config, sort_keys=True).encode())
        for name, tensor in sorted(weights.items()):
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()
