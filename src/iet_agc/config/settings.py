"""Settings of a run: validated, documented, saved and hashed. Imports no torch.

A preset is a TOML file with one section per class below; `extends = "NAME"` at its top takes what it leaves
out from another preset. `--section.name VALUE` on the command line replaces one setting, written as in the file.
"""

import difflib
import hashlib
import json
import re
import tomllib
from collections.abc import Collection, Iterator, Mapping
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveInt, ValidationError, model_validator
from pydantic.fields import FieldInfo

from iet_agc.config.data_settings import DATA_OPTIONS, IMAGE_SETS, Data, DataSettings, DigitsData, names_with
from iet_agc.config.section import Section
from iet_agc.runtime.errors import UserError
from iet_agc.runtime.files import check_ours, replace_text

__all__ = [
    "LoraSettings",
    "ModelSettings",
    "SampleSettings",
    "Settings",
    "TextSettings",
    "annotated",
    "check_folder",
    "claim_folder",
    "customized",
    "differences",
    "documented",
    "essence",
    "fingerprint",
    "is_run",
    "load_preset",
    "override",
    "preset_names",
    "read_settings",
    "validate",
]


class ModelSettings(Section, frozen=True):
    """The U-Net."""

    kind: Literal["image", "text-to-image"] = Field(
        default="image",
        description="image: diffusion of pixels by the U-Net below; text-to-image: latent diffusion conditioned on "
        "captions, by the U-Net of init.model, a pipeline like Stable Diffusion 1 or 2",
    )
    channels: int = Field(default=128, ge=1, description="channels of the first level")
    multipliers: tuple[PositiveInt, ...] = Field(
        default=(1, 2, 2, 2), min_length=1, description="channels of each level as multiples of model.channels"
    )
    blocks: int = Field(default=2, ge=1, description="residual blocks per level")
    attention: tuple[int, ...] = Field(
        default=(16,), description="image heights, in pixels, at which a level has self-attention"
    )
    dropout: float = Field(default=0.1, ge=0, lt=1, description="dropout probability in residual blocks, in [0, 1)")
    groups: int = Field(default=32, ge=1, description="number of groups of each group normalization")
    classes: int | None = Field(
        default=None,
        ge=1,
        description="number of classes of a class-conditional model, that of the image set; none: unconditional",
    )
    initialization: Literal["diffusers", "ddpm"] = Field(
        default="diffusers",
        description="of random weights: diffusers, the defaults of its layers; ddpm, Xavier, and almost zero where a "
        "residual branch, attention and the model end. Weights of init.model stay as they are",
    )

    def architecture(self) -> dict[str, Any]:
        """The arguments of `unet.build_unet`."""
        return self.model_dump(exclude={"kind"})

    @model_validator(mode="after")
    def _text_to_image_has_its_own(self) -> "ModelSettings":
        fields = type(self).model_fields
        changed = [name for name in fields if name != "kind" and getattr(self, name) != fields[name].default]
        if self.kind == "text-to-image" and changed:
            raise UserError(
                f"model.{changed[0]} has no effect on text-to-image, whose U-Net is that of init.model: leave it out"
            )
        return self


#: No more can be put into a text of CLIP's.
_MOST_WORDS = 75

#: Settings that came after runs had been trained, and what was done before, by section; see `fingerprint`.
_ADDED: dict[str, dict[str, object]] = {
    "data": {"resize": "bicubic"},
    "model": {"initialization": "diffusers"},
    "method": {"keep_duplicates_together": False},
}


class TextSettings(Section, frozen=True):
    """How captions condition text-to-image in training (Somepalli et al., NeurIPS 2023, arXiv 2305.20086)."""

    captions: Literal["random", "first"] = Field(
        default="random",
        description="which caption of an image with several: random, one drawn each time, against copying; first, "
        "always the first",
    )
    embedding_noise: float = Field(
        default=0.0,
        ge=0,
        description="standard deviation of Gaussian noise added to the embedded caption, against copying; 0: none",
    )
    drop_caption: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="probability of dropping the caption, in [0, 1); classifier-free guidance needs it in training "
        "from random weights",
    )
    train_encoder: bool = Field(default=False, description="train the text encoder together with the U-Net")
    random_caption: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="probability of replacing the caption by four random words, in [0, 1], against copying",
    )
    random_tokens: int = Field(
        default=0,
        ge=0,
        le=_MOST_WORDS,
        description="number of random words inserted into each caption, 0 to 75, against copying",
    )
    random_numbers: int = Field(
        default=0,
        ge=0,
        le=_MOST_WORDS,
        description="number of random numbers inserted into each caption, 0 to 75, against copying",
    )
    repeat_words: int = Field(
        default=0,
        ge=0,
        le=_MOST_WORDS,
        description="number of words of each caption repeated in it, 0 to 75, against copying",
    )
    change_rate: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="probability of changing a caption by the last three each time it is drawn, in (0, 1]",
    )
    too_long: Literal["refuse", "cut"] = Field(
        default="refuse",
        description="captions with more tokens than the text encoder takes: refuse, an error; cut, truncated",
    )

    def changes(self) -> dict[str, Any]:
        """The arguments of `caption_augmentation.Changes`, for training."""
        names = {"random_caption", "random_tokens", "random_numbers", "repeat_words", "change_rate"}
        return self.model_dump(include=names)


class LoraSettings(Section, frozen=True):
    """Low-rank factors that are trained in place of weights (Hu et al., 2022, arXiv 2106.09685)."""

    rank: int = Field(
        default=0,
        ge=0,
        description="of text-to-image: rank of the LoRA factors of each attention projection, which alone are trained "
        "and averaged, factor by factor; 0: all weights are trained",
    )
    alpha: float | None = Field(
        default=None,
        gt=0,
        description="scale of LoRA, above 0: what is added is multiplied by lora.alpha / lora.rank; none: by 1",
    )


class InitSettings(Section, frozen=True):
    """What the weights start from."""

    model: str | None = Field(
        default=None,
        description="initial weights: a run, a diffusers pipeline folder or a hub id; empty: one must be given; none: "
        "random weights",
    )
    revision: str | None = Field(
        default=None,
        description="branch, tag or commit of a hub id; none: 'main'; a run records the commit",
    )
    sha256: str | None = Field(
        default=None,
        pattern="^[0-9a-f]{64}$",
        description="expected SHA-256 of the initial weights, refused if they have another; a run records that of its "
        "own",
    )


class MethodSettings(Section, frozen=True):
    """Iterative Ensemble Training and Anti-Gradient Control."""

    members: int = Field(
        default=1, ge=1, description="number of ensemble members, each with a shard of its own; 1: no ensemble"
    )
    rounds: int = Field(
        default=1, ge=1, le=9999, description="number of rounds, 1 to 9999; in each, members are trained, then averaged"
    )
    sharding: Literal["stratified", "random", "contiguous"] = Field(
        default="stratified",
        description="how the training set is cut into shards: stratified by class, random, or contiguous, in its order",
    )
    keep_duplicates_together: bool = Field(
        default=False,
        description="images that are equal in every pixel go to one shard; for stratified and random sharding",
    )
    skip_below: float = Field(
        default=0.0,
        ge=0,
        description="skip a sample whose loss is below this fraction of the loss bank at its timestep; 0: never",
    )
    decay: float = Field(
        default=0.8,
        ge=0,
        lt=1,
        description="fraction of the loss bank's running mean that is kept when a loss comes in, in [0, 1)",
    )
    random_skip: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="probability of skipping each sample, whatever its loss, in [0, 1) (a control)",
    )

    @model_validator(mode="after")
    def _order_cannot_stay(self) -> "MethodSettings":
        if self.keep_duplicates_together and self.sharding == "contiguous":
            raise UserError(
                "keep_duplicates_together true needs another order than the one that sharding 'contiguous' leaves as "
                "it is: use stratified or random, or leave it out"
            )
        return self


class TrainSettings(Section, frozen=True):
    """How each member is trained."""

    steps: int = Field(default=400_000, ge=1, description="optimizer steps of each member in each round")
    batch_size: int = Field(default=128, ge=1, description="images per optimizer step")
    learning_rate: float = Field(default=2e-4, gt=0, description="learning rate of Adam after the warm-up")
    weight_decay: float = Field(default=0.0, ge=0, description="weight decay of AdamW; 0: Adam")
    warmup_steps: int = Field(
        default=5000, ge=0, description="steps of a member over which the learning rate rises from 0"
    )
    grad_clip: float = Field(default=1.0, gt=0, description="largest norm of the gradient, which is scaled down to it")
    ema_decay: float = Field(
        default=0.9999,
        ge=0,
        le=1,
        description="decay of the EMA weights: fraction that is kept at each step, in [0, 1]",
    )
    seed: int = Field(
        default=0, ge=0, description="random seed of initial weights, shards, batches, timesteps and noise"
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="float32",
        description="of convolutions and matrix products; auto: bfloat16 where the device has instructions for it; a "
        "run records which",
    )
    compile: bool = Field(
        default=False, description="compile the U-Net by torch.compile; results are rounded differently"
    )


class SampleSettings(Section, frozen=True):
    """How a trained model is sampled, by default."""

    num: int = Field(default=65_536, ge=1, description="number of images")
    steps: int = Field(default=50, ge=1, le=500, description="denoising steps per image, 1 to 500")
    weights: Literal["raw", "ema"] = Field(
        default="raw", description="raw: the weights as trained; ema: their exponential moving average"
    )
    first_seed: int = Field(default=0, ge=0, description="random seed of the first image; the others count on from it")
    guidance: float = Field(
        default=7.5,
        ge=0,
        description="of text-to-image: classifier-free guidance scale; at most 1: no guidance",
    )
    scheduler: Literal["ddim", "dpm++", "pndm", "euler"] = Field(
        default="ddim",
        description="of text-to-image: scheduler of denoising; ddim is DDIM with eta 0, dpm++ DPM-Solver++ of order 2",
    )
    random_tokens: int = Field(
        default=0,
        ge=0,
        le=_MOST_WORDS,
        description="of text-to-image: number of random words inserted into each prompt, 0 to 75, against copying",
    )
    random_numbers: int = Field(
        default=0,
        ge=0,
        le=_MOST_WORDS,
        description="of text-to-image: number of random numbers inserted into each prompt, 0 to 75, against copying",
    )
    repeat_words: int = Field(
        default=0,
        ge=0,
        le=_MOST_WORDS,
        description="of text-to-image: number of words of each prompt repeated in it, 0 to 75, against copying",
    )
    embedding_noise: float = Field(
        default=0.0,
        ge=0,
        description="of text-to-image: standard deviation of Gaussian noise added to the embedded prompt, against "
        "copying; 0: none",
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="float32", description="as train.precision, when sampling"
    )

    def changes(self) -> dict[str, Any]:
        """The arguments of `caption_augmentation.Changes`, for prompts."""
        return self.model_dump(include={"random_tokens", "random_numbers", "repeat_words"})

    @model_validator(mode="after")
    def _seeds_differ(self) -> "SampleSettings":
        if self.first_seed + self.num > 2**32:  # torch's CPU generator would take them modulo 2^32
            raise UserError(f"first_seed {self.first_seed} + num {self.num} is more than 2^32, so seeds would repeat")
        return self


class RunSettings(Section, frozen=True):
    """What changes the course of a run, not its result."""

    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="device to compute on; auto: cuda where there is one"
    )
    threads: int = Field(
        default=0,
        ge=0,
        description="CPU threads per process; 0: PyTorch's choice. Sums on a CPU round differently with another number",
    )
    save_every: int = Field(
        default=2000,
        ge=1,
        description="steps of a member between two bundles (checkpoints) within a round, up to the next point of its "
        "curve",
    )
    log_every: int = Field(default=50, ge=1, description="steps between two points of a training curve")
    preview_images: int = Field(default=64, ge=0, description="images in the grid drawn after each round; 0: no grids")


class Settings(Section, frozen=True):
    """Everything that a run depends on."""

    name: str = Field(default="", description="name of the preset that the run started from")
    description: str = Field(default="", description="what the preset is, in one line")
    data: Data = Field(default=DigitsData())
    model: ModelSettings = ModelSettings()
    text: TextSettings = TextSettings()
    lora: LoraSettings = LoraSettings()
    init: InitSettings = InitSettings()
    method: MethodSettings = MethodSettings()
    train: TrainSettings = TrainSettings()
    sample: SampleSettings = SampleSettings()
    run: RunSettings = RunSettings()

    @property
    def total_steps(self) -> int:
        """Optimizer steps of all members in all rounds."""
        return self.method.members * self.method.rounds * self.train.steps


def preset_names() -> list[str]:
    """The presets that come with the package, sorted."""
    return sorted(file.name.removesuffix(".toml") for file in _preset_folder().iterdir() if file.name.endswith(".toml"))


def load_preset(name: str) -> Settings:
    """The settings of a preset.

    Args:
        name: of a preset that comes with the package, or the path of a .toml file in the same form.

    Raises:
        UserError: there is none of that name (the message names the nearest), or the file is no preset.
    """
    if name.endswith(".toml"):
        return _read_preset(Path(name))
    if name not in preset_names():
        raise UserError(f"unknown preset {name!r}{_nearest(name, preset_names())}; 'iet-agc presets' lists them")
    return validate({"name": name} | _content(name))


def _content(name: str) -> dict[str, Any]:
    """What a preset of the package says, what it extends included."""
    if name not in preset_names():
        raise UserError(f"extends {name!r}, which is no preset{_nearest(name, preset_names())}")
    return _extended(tomllib.loads((_preset_folder() / f"{name}.toml").read_text(encoding="utf-8")))


def _extended(content: dict[str, Any]) -> dict[str, Any]:
    """The content of a preset on top of what it extends, section by section."""
    base = content.pop("extends", None)
    if base is None:
        return content
    below = _content(str(base))
    sections = {
        name: below[name] | value
        for name, value in content.items()
        if isinstance(value, dict) and isinstance(below.get(name), dict)
    }
    merged = below | content | sections
    own, data = below.get("data", {}), merged.get("data", {})
    if isinstance(data, dict) and _is_another_set(own, data):
        _check_planting(str(base), own, data, content["data"])
        merged |= {"description": content.get("description", _description(str(base), own, data))}
    return merged


def _read_preset(file: Path) -> Settings:
    try:
        return validate({"name": file.stem} | _extended(tomllib.loads(file.read_text(encoding="utf-8"))))
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None
    except ValueError as error:  # no UTF-8, no TOML, or no settings
        raise UserError(f"{file} is no preset: {error}") from None


def validate(content: Mapping[str, object]) -> Settings:
    """Settings from nested plain values, as in a preset or a saved run.

    Raises:
        UserError: one line that names the setting, its value and what is allowed.
    """
    try:
        return Settings.model_validate(content)
    except ValidationError as error:
        raise UserError(_one_line(error)) from None


def override(settings: Settings, changes: Mapping[str, str]) -> Settings:
    """Replace settings by name.

    Args:
        settings: where to start from.
        changes: {"train.batch_size": "64"}: values written as in a preset; strings need no quotes,
            lists no brackets, and "none" stands for nothing.

    Raises:
        UserError: an unknown name (the nearest one is named), or an impossible value or one that is not UTF-8.
    """
    content = settings.model_dump()
    names = [name for name, *_ in documented(settings)]
    for name, text in changes.items():
        name = name.replace("-", "_")
        if name not in names:
            raise UserError(f"unknown setting {name!r}{_nearest(name, names)}")
        if re.search(
            "[\ud800-\udfff]", text
        ):  # what a shell passes on of other encodings; no file of a run could say it
            raise UserError(f"setting {name} {text!a} is not UTF-8: write it so, and name files and folders so")
        *section, field = name.split(".")
        target = content[section[0]] if section else content
        is_list = isinstance(target[field], tuple)
        owner = _fields(getattr(settings, section[0])) if section else Settings.model_fields
        is_text = owner[field].annotation in (str, str | None)
        target[field] = _unquoted(text) if is_text else _parse(text, is_list)
    return validate(content)


def customized(preset: Settings, changes: Mapping[str, str]) -> Settings:
    """`override` for a run that starts from a preset: planting and description are those of the preset's own images.

    Args:
        preset: see `load_preset`.
        changes: see `override`. Where they change which images are trained on, the description says so, unless they
            give one.

    Raises:
        UserError: see `override`; or they choose another image set than the preset's, some of which would be planted
            though they do not ask for it.
    """
    settings, given = override(preset, changes), {name.replace("-", "_") for name in changes}
    own, data = preset.data.model_dump(), settings.data.model_dump()
    if _is_another_set(own, data):
        _check_planting(preset.name, own, data, {name.removeprefix("data.") for name in given})
    if "description" in given or not _changed_images(own, data):
        return settings
    return settings.model_copy(update={"description": _description(preset.name, own, data)})


def _changed_images(own: Mapping[str, object], data: Mapping[str, object]) -> dict[str, object]:
    """Settings of section data that change which images are trained on, but for the seed that shuffles them."""
    kind = IMAGE_SETS.get(str(data.get("name")))
    never = {"download", "cache", "seed"} | (set() if kind and kind.is_what_lies_there else {"root", "revision"})
    return {n: data.get(n) for n in DATA_OPTIONS if n not in never and own.get(n) != data.get(n)}


def _is_another_set(own: Mapping[str, object], data: Mapping[str, object]) -> bool:
    return not _changed_images(own, data).keys().isdisjoint({"name", "root", "subset"})


def _check_planting(name: str, own: Mapping[str, object], data: Mapping[str, object], given: Collection[str]) -> None:
    """Refuse to plant another image set as a preset plants its own, without being asked."""
    count, copies = data.get("planted_images", 0), data.get("planted_copies", 1)
    if not isinstance(count, int) or not isinstance(copies, int):
        return  # no setting, which is told when it is read
    if "planted_images" not in given and count > 0 and copies > 1:
        change = next(iter(f"data.{key} {value}" for key, value in _changed_images(own, data).items()))
        raise UserError(
            f"{name} plants {count} of its own images {copies} times each, and {change} is another image set: set "
            f"data.planted_images, 0 plants none of it and {count} as many"
        )


def _description(name: str, own: Mapping[str, object], data: Mapping[str, object]) -> str:
    changes = (f"data.{key} {'none' if value is None else value}" for key, value in _changed_images(own, data).items())
    return f"As {name}, but {', '.join(changes)}"


def documented(settings: Settings) -> Iterator[tuple[str, object, str]]:
    """Every setting as (dotted name, value, meaning with unit), in order."""
    for name, field in Settings.model_fields.items():
        value = getattr(settings, name)
        if isinstance(value, Section):
            for inner, inner_field in _fields(value).items():
                yield f"{name}.{inner}", getattr(value, inner, inner_field.default), _meaning(value, inner)
        else:
            yield name, value, field.description or ""


def _fields(section: Section) -> Mapping[str, FieldInfo]:
    """The fields of a section; of section data those of every image set."""
    return DATA_OPTIONS if isinstance(section, DataSettings) else type(section).model_fields


def _meaning(section: Section, name: str) -> str:
    meaning = _fields(section)[name].description or ""
    owners = names_with(name) if isinstance(section, DataSettings) else []
    return f"of {', '.join(owners)}: {meaning}" if 0 < len(owners) < len(IMAGE_SETS) else meaning


def fingerprint(settings: Settings) -> str:
    """SHA-256 of what the trained weights depend on.

    That is the sections data and init (but not where images and model lie), model, text, lora, method and train. A
    setting of `_ADDED` counts only where it is another than before it was one: runs of then keep their identity.
    """
    parts = essence(settings)
    for section, before in _ADDED.items():
        parts[section] = {name: value for name, value in parts[section].items() if (name, value) not in before.items()}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def essence(settings: Settings) -> dict[str, dict[str, object]]:
    """The settings that the trained weights depend on, by section, JSON values only; see `fingerprint`."""
    parts = settings.model_dump(mode="json", include={"data", "model", "text", "lora", "init", "method", "train"})
    del parts["init"]["model"], parts["init"]["revision"]  # init.sha256 says which it was
    for place in ("root", "revision", "download", "cache"):  # the images say which they are
        del parts["data"][place]
    return parts


def differences(old: Settings, new: Settings) -> list[str]:
    """Settings that change the weights and differ, as "train.seed 0 is now 1"."""
    return [
        f"{section}.{name} {value} is now {essence(new)[section][name]}"
        for section, values in essence(old).items()
        for name, value in values.items()
        if value != essence(new)[section][name]
    ]


def check_folder(settings: Settings, folder: Path) -> None:
    """Find out whether `folder` is free or holds the run of these settings. Writes nothing.

    Raises:
        UserError: it holds another run, or something else; the message says what differs.
    """
    check_ours(folder, "config.json", {"config.json", "settings.toml"}, "run")
    if (folder / "config.json").exists() and (changed := differences(read_settings(folder), settings)):
        raise UserError(
            f"{folder} holds another run ({'; '.join(changed)}): choose another --out, or the settings of then"
        )


def claim_folder(settings: Settings, folder: Path) -> None:
    """Make `folder` the run of these settings, after `check_folder`.

    config.json is what a resume reads; settings.toml says the same to people, with the meaning of each
    setting, and is a preset.

    Raises:
        UserError: see `check_folder`.
    """
    check_folder(settings, folder)
    folder.mkdir(parents=True, exist_ok=True)
    replace_text(folder / "settings.toml", annotated(settings))
    replace_text(folder / "config.json", settings.model_dump_json(indent=1) + "\n")


def annotated(settings: Settings) -> str:
    """The settings as a preset file, each with its meaning and unit."""
    lines: list[str] = []
    for dotted, value, meaning in documented(settings):
        section, _, field = dotted.rpartition(".")
        if section and f"[{section}]" not in lines:
            lines += ["", f"[{section}]"]
        line = f"# {field}: none" if value is None else f"{field} = {json.dumps(value, ensure_ascii=False)}"
        lines.append(f"{line:<40} # {meaning}")
    return "\n".join(lines) + "\n"


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's."""
    return (folder / "config.json").is_file() and not (folder / "model_index.json").is_file()


def read_settings(folder: Path) -> Settings:
    """The settings of a run.

    Raises:
        UserError: the folder holds no run.
    """
    file = folder / "config.json"
    try:
        return validate(json.loads(file.read_text(encoding="utf-8")))
    except OSError:
        raise UserError(f"{folder} is not a run: it has no config.json") from None
    except ValueError as error:  # no UTF-8, no JSON, or no settings
        raise UserError(f"{file} is damaged: {error}") from None


def _preset_folder() -> Traversable:
    return resources.files("iet_agc.config") / "presets"


def _nearest(name: str, names: list[str]) -> str:
    misplaced = [known for known in names if known.split(".")[-1] == name.split(".")[-1]]
    close = misplaced or difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def _unquoted(text: str) -> str | None:
    if text.lower() == "none":
        return None
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def _parse(text: str, is_list: bool) -> object:
    if text.lower() == "none":
        return None
    try:
        return tomllib.loads(f"value = {f'[{text}]' if is_list and not text.startswith('[') else text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _one_line(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    name, kind, reason = _dotted(first["loc"]), first["type"], first["msg"].removeprefix("Value error, ")
    if kind == "extra_forbidden":
        return f"unknown setting {name!r}{_nearest(name, [known for known, *_ in documented(Settings())])}"
    if kind == "no_effect":
        return reason
    if kind == "value_error":
        return f"setting {name}: {reason}"
    value = first["input"]
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        *names, last = map(repr, IMAGE_SETS)
        name, value, reason = f"{name}.name", value["name"], f"Input should be {', '.join(names)} or {last}"
    return f"setting {name}: {reason[0].lower()}{reason[1:]} (it is {value!r})"


def _dotted(place: tuple[int | str, ...]) -> str:
    """The name of a setting where pydantic found an error, which names the image set, too."""
    section, *rest = place or ("",)
    return ".".join(map(str, (section, *(rest[1:] if section == "data" and rest and rest[0] in IMAGE_SETS else rest))))
