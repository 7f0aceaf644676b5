"""Build a U-Net; save and load diffusers models, U-Nets and DiTs.

A trained model is a diffusers pipeline folder, so whoever gets it needs diffusers only. A DiT over pixels is no whole
pipeline there, as `DiTPipeline` has a VAE, too: its folder has the other two parts, which diffusers loads one by one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import nn

from iet_agc.diffusion.dit import with_classes_kept
from iet_agc.diffusion.dropout import with_batch_dropout
from iet_agc.diffusion.process import Scheduler, is_flow
from iet_agc.runtime.errors import UserError, in_words
from iet_agc.runtime.files import hashes_below, replace_text, replacing_folder
from iet_agc.runtime.paths import check_pipeline_place
from iet_agc.runtime.reading import check_regular_below, read_object
from iet_agc.runtime.seeds import kept_generators

if TYPE_CHECKING:
    from diffusers import DiTTransformer2DModel, UNet2DModel

__all__ = [
    "Network",
    "build_unet",
    "check_described",
    "check_finite",
    "checked_scheduler",
    "image_shape",
    "is_dit",
    "is_text_pipeline",
    "load_pipeline",
    "num_classes",
    "pipeline_index",
    "save_pipeline",
    "weight_files",
]

#: A model over pixels.
Network: TypeAlias = "UNet2DModel | DiTTransformer2DModel"


def build_unet(
    image_size: int,
    image_channels: int,
    channels: int = 128,
    multipliers: Sequence[int] = (1, 2, 2, 2),
    blocks: int = 2,
    attention: Sequence[int] = (16,),
    dropout: float = 0.1,
    groups: int = 32,
    classes: int | None = None,
    initialization: str = "diffusers",
) -> UNet2DModel:
    """The U-Net of DDPM (Ho et al., 2020, appendix B), which the paper uses, as a diffusers model.

    Args:
        image_size: height and width, pixels; must halve evenly once per further level.
        image_channels: 1 or 3.
        channels: width of the first level.
        multipliers: width of each level, as a multiple of `channels`.
        blocks: residual blocks per level.
        attention: at which heights, in pixels, the levels have self-attention (one head).
        dropout: in every residual block.
        groups: of the group normalisation; must divide every width.
        classes: number of classes of a class-conditional model, whose embeddings are added to that of the timestep; or
            None.
        initialization: "diffusers" leaves the layers as diffusers makes them; "ddpm" draws them by `_as_ddpm`.

    Returns:
        A freshly initialised model from torch's global generator, in training mode.

    Raises:
        UserError: the size does not halve evenly, `groups` does not divide a width, or no level has a
            height of `attention`.
    """
    from diffusers import UNet2DModel

    assert initialization in {"diffusers", "ddpm"}
    heights = _heights(image_size, len(multipliers), attention)
    widths = tuple(channels * multiplier for multiplier in multipliers)
    if odd := [width for width in widths if width % groups]:
        raise UserError(f"model.groups {groups} does not divide the model's width {odd[0]}")
    attends = [height in attention for height in heights]
    model = UNet2DModel(
        sample_size=image_size,
        in_channels=image_channels,
        out_channels=image_channels,
        block_out_channels=widths,
        layers_per_block=blocks,
        down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
        dropout=dropout,
        attention_head_dim=None,  # pyright: ignore[reportArgumentType]
        norm_num_groups=groups,
        norm_eps=1e-6,
        num_class_embeds=classes,
    )
    return with_batch_dropout(_as_ddpm(model) if initialization == "ddpm" else model)


def _heights(image_size: int, levels: int, attention: Sequence[int]) -> list[int]:
    """Those of the levels, in pixels; refuses what does not halve evenly, and attention where there is no level."""
    heights = [image_size // 2**level for level in range(levels)]
    if heights[-1] * 2 ** (levels - 1) != image_size:
        raise UserError(f"images of {image_size} px cannot be halved {levels - 1} times: use fewer model.multipliers")
    if absent := [height for height in attention if height not in heights]:
        raise UserError(
            f"model.attention {absent[0]}: no level has that height, they have {', '.join(map(str, heights))}"
        )
    return heights


#: Where a residual branch, attention and the model end. DDPM's variance there is 1e-10 times Xavier's.
_ENDS, _END_GAIN = ("conv2", "to_out.0", "conv_out"), 1e-5


def _as_ddpm(model: UNet2DModel) -> UNet2DModel:
    """The model itself with the initial weights of DDPM (Ho et al., 2020), from torch's global generator.

    Convolutions and linear layers are uniform with variance 2 / (fan_in + fan_out) (Glorot and Bengio, 2010), or 1e-10
    times that where a branch ends, so that every block starts as its shortcut and the model as nearly zero; biases are
    zero. DDPM was unconditional: their embeddings stay standard normal. Group normalisation is 1 and 0 in either.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(module.weight, _END_GAIN if name.endswith(_ENDS) else 1.0)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model


def save_pipeline(model: Network, scheduler: Scheduler, folder: Path, own: Collection[str] = ()) -> dict[str, str]:
    """Write a pipeline folder whole or not at all, as safetensors and JSON.

    A U-Net becomes a `DDIMPipeline`, or a `DDPMPipeline` where it learned a flow, since that takes any scheduler. A DiT
    becomes the parts of a `DiTPipeline` that it has.

    Args:
        model, scheduler: its parts.
        folder: where. What else stands there stays.
        own: paths below it that an earlier call wrote, which go.

    Returns:
        What was written: path below the folder -> SHA-256.
    """
    with replacing_folder(folder, own) as unfinished:
        _save_dit(model, scheduler, unfinished) if is_dit(model) else _save_unet(model, scheduler, unfinished)
        return hashes_below(unfinished)


def _save_unet(model: Network, scheduler: Scheduler, folder: Path) -> None:
    from diffusers import DDIMPipeline, DDPMPipeline

    kind: Any = DDPMPipeline if is_flow(scheduler) else DDIMPipeline
    kind(unet=model, scheduler=scheduler).save_pretrained(folder)


def _save_dit(model: Network, scheduler: Scheduler, folder: Path) -> None:
    from diffusers import __version__

    parts = {"scheduler": scheduler, "transformer": model}
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    index: dict[str, Any] = {"_class_name": "DiTPipeline", "_diffusers_version": __version__}
    index |= {name: ["diffusers", type(part).__name__] for name, part in parts.items()} | {"vae": [None, None]}
    replace_text(folder / "model_index.json", json.dumps(index, indent=2) + "\n")


def is_dit(model: Network) -> bool:
    """Whether a model over pixels is a DiT; else it is a U-Net."""
    from diffusers import DiTTransformer2DModel

    return isinstance(model, DiTTransformer2DModel)


def _load_network(folder: Path) -> Network:
    """A model whose every weight is in the file; diffusers fills what is missing with random numbers."""
    from diffusers import DiTTransformer2DModel, UNet2DModel

    classes: dict[str, Any] = {"UNet2DModel": UNet2DModel, "DiTTransformer2DModel": DiTTransformer2DModel}
    config = read_object(folder / "config.json")
    if (name := config.get("_class_name")) not in classes:
        raise UserError(f"its network is a {name}, not a UNet2DModel or a DiTTransformer2DModel")
    if embedding := config.get("class_embed_type"):
        raise UserError(f"its classes are embedded by {embedding!r}; only a table of classes is read")
    check_described(classes[name], folder, _draws)
    with kept_generators():
        loaded: Any = classes[name].from_pretrained(
            folder, use_safetensors=True, low_cpu_mem_usage=False, output_loading_info=True
        )
    model, found = loaded
    if odd := [*found["missing_keys"], *found["unexpected_keys"]]:
        raise UserError(f"its weights are not those of its configuration: {odd[0]}")
    check_finite(model)
    return with_classes_kept(model)


def _draws(model: Any) -> None:
    """Call a model as sampling does."""
    classes = num_classes(model)
    labels = {} if classes is None else {"class_labels": torch.zeros(1, dtype=torch.int64)}
    with_classes_kept(model)(torch.zeros(1, *image_shape(model)), torch.zeros(1), **labels)


def check_described(kind: Any, folder: Path, call: Callable[[Any], object]) -> None:
    """Refuse a model that is described so that it cannot be made or called, before diffusers makes it.

    It is made without memory (on torch's device "meta"), where a description that asks for gigabytes costs nothing.

    Args:
        kind: the class of diffusers that the model is to be.
        folder: with its config.json and safetensors.
        call: a function that calls such a model with tensors that it makes.

    Raises:
        UserError: its config.json is damaged, or describes more weights than its files hold. Whatever else making or
            calling it raises is passed on.
    """
    config = read_object(folder / "config.json")
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    for name, value in config.items():
        most = next((most for part, most in _MOST.items() if part in name), size)
        if odd := [number for number in _numbers(value) if abs(number) > most]:
            raise UserError(f"its config.json has {name} {odd[0]:g}, more than its weights can be of")
    _check_called(kind, json.dumps(config), size, call)


@lru_cache(maxsize=64)
def _check_called(kind: Any, config: str, size: int, call: Callable[[Any], object]) -> None:
    """Make and call a model without memory; once for each description, as this takes tenths of a second."""
    with torch.device("meta"), torch.no_grad():
        model = kind.from_config(json.loads(config))
        if (needed := sum(weight.numel() for weight in model.parameters())) > size:
            raise UserError(f"its config.json describes {needed:,} weights, its files have {size:,} bytes")
        call(model.eval())


#: Of numbers in a description, by a part of their names: blocks of a level, pixels or latents of an edge.
_MOST = {"layers": 1000, "sample_size": 2**14}

#: Of a noise schedule; the usual ones have 1,000.
_MOST_TIMESTEPS = 100_000


def checked_scheduler(folder: Path, make: Callable[[], Any]) -> Any:
    """A noise schedule that can take a step.

    Args:
        folder: with its scheduler_config.json.
        make: reads it.

    Raises:
        UserError: it is damaged, or not finite. Whatever making it or its step raises is passed on.
    """
    count = read_object(folder / "scheduler_config.json", finite=False).get("num_train_timesteps", 1)
    if type(count) is not int or not 1 <= count <= _MOST_TIMESTEPS:
        raise UserError(f"its noise schedule has {count} timesteps: 1 to {_MOST_TIMESTEPS:,} can be")
    scheduler = make()
    trial: Any = type(scheduler).from_config(scheduler.config)
    trial.set_timesteps(1)
    stepped = trial.step(torch.zeros(1, 3, 2, 2), trial.timesteps[0], torch.zeros(1, 3, 2, 2)).prev_sample
    levels: Any = trial.sigmas if is_flow(trial) else trial.alphas_cumprod
    if not (stepped.isfinite().all() and levels.isfinite().all()):
        raise UserError("its noise schedule is not finite")
    return scheduler


def _numbers(value: Any) -> list[float]:
    if isinstance(value, list):
        return [number for each in value for number in _numbers(each)]
    return [value] if isinstance(value, int | float) else []


def check_finite(model: nn.Module) -> None:
    """Refuse weights that draw nothing.

    Raises:
        UserError: the first that holds NaN or infinity.
    """
    for name, weight in model.state_dict().items():
        if not weight.isfinite().all():
            raise UserError(f"its weights {name} are not finite: the training broke, or the file is damaged")


def image_shape(model: Network) -> tuple[int, int, int]:
    """(C, H, W) of the images that a model is made for."""
    config: Any = model.config
    height, width = config.sample_size if isinstance(config.sample_size, list | tuple) else [config.sample_size] * 2
    return config.in_channels, height, width


def num_classes(model: Network) -> int | None:
    """Number of classes of a class-conditional model; None of an unconditional one."""
    config: Any = model.config
    return (config.num_embeds_ada_norm or None) if is_dit(model) else config.num_class_embeds


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights of a pipeline."""
    return sorted(_network_part(folder).glob("*.safetensors"))


def _part(folder: Path, name: str) -> Path:
    """Where a part of a pipeline is: in a folder of its own, or in the pipeline's as in the oldest ones."""
    return folder / name if (folder / name).is_dir() else folder


def _network_part(folder: Path) -> Path:
    return _part(folder, "transformer" if (folder / "transformer").is_dir() else "unet")


def pipeline_index(folder: Path) -> dict[str, Any]:
    """What parts a diffusers pipeline has, as its model_index.json says; nothing, if the folder is none."""
    try:
        return read_object(folder / "model_index.json")
    except UserError:
        return {}


def is_text_pipeline(folder: Path) -> bool:
    """Whether a folder is a diffusers pipeline with a text encoder, a U-Net that is made for one, or a DiT of latents.

    The texts of such a DiT are names of classes.
    """
    index = pipeline_index(folder)
    if index.get("unet") == ["diffusers", "UNet2DConditionModel"] or "text_encoder" in index:
        return True
    return index.get("_class_name") == "DiTPipeline" and _has_vae(index)


def _has_vae(index: Mapping[str, Any]) -> bool:
    return bool((index.get("vae") or [None])[0])


def load_pipeline(folder: Path, device: torch.device | str = "cpu") -> tuple[Network, Scheduler]:
    """Read model and schedule back, the model in evaluation mode.

    Weights are read from safetensors only.

    Raises:
        UserError: the folder is no diffusers pipeline with a U-Net or DiT that draws pixels, class-conditional or not.
    """
    check_pipeline_place(folder)
    check_regular_below(folder)
    try:
        if _has_vae(pipeline_index(folder)):
            raise UserError("it draws latents that a VAE decodes: only models over pixels are read")
        model = _load_network(_network_part(folder))
        place = _part(folder, "scheduler")
        scheduler = checked_scheduler(place, lambda: _load_scheduler(place))
    except Exception as error:  # damaged files make their libraries raise nearly anything
        raise UserError(f"{folder} cannot be read as a diffusers pipeline: {in_words(error)}") from error
    model.to(device)  # pyright: ignore[reportArgumentType]
    return model.eval(), scheduler


def _load_scheduler(folder: Path) -> Scheduler:
    """That of a flow, or the noise schedule of any other as DDIM's."""
    from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

    name = read_object(folder / "scheduler_config.json", finite=False).get("_class_name")
    kind: Any = FlowMatchEulerDiscreteScheduler if name == "FlowMatchEulerDiscreteScheduler" else DDIMScheduler
    return kind.from_pretrained(folder)
