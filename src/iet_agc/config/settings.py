"""Settings of a run: validated, documented, saved and hashed. Imports no torch.

A preset is a TOML file with one section per class below; `extends = "NAME"` at its top takes what it leaves
out from another preset. `override` replaces single settings, as the command line does, written as in the file.
"""

import difflib
import hashlib
import json
import re
import tomllib
from collections.abc import Collection, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from iet_agc.runtime.errors import UserError, one_line
from iet_agc.runtime.files import check_ours, replace_text, shown
from iet_agc.runtime.reading import parse_toml, read_object, read_toml

__all__ = [
    "DataSettings",
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


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataSettings(_Section):
    """Which images are trained on, and which are held out."""

    name: Literal[
        "digits", "fashion-mnist", "cifar10", "cifar100", "afhq-dog", "laion-10k", "emoji", "hugging-face", "folder"
    ] = Field("digits", description="image set; 'folder' takes the images under data.root")
    root: str | None = Field(None, description="where the image set is; of hugging-face a folder, or a name on the hub")
    revision: str | None = Field(
        None, description="of a hugging-face dataset on the hub: its branch, tag or commit; none: 'main'"
    )
    download: bool = Field(False, description="fetch cifar10, cifar100 or fashion-mnist into data.root, or unpack it")
    convert_to: str | None = Field(
        None,
        pattern=r"^[13]x[1-9]\d{0,4}x[1-9]\d{0,4}$",
        description="bring every image to CxHxW, such as 3x64x64; none: as it is, but afhq-dog 3x64x64, laion-10k "
        "3x256x256, emoji 3x32x32",
    )
    resize: Literal["bicubic", "bilinear"] = Field(
        "bicubic",
        description="how images of other sizes are brought to that one: bicubic, their exact centred part; bilinear, "
        "by torchvision's Resize and CenterCrop, as the paper's authors did",
    )
    classes: Literal["folders"] | None = Field(
        None, description="of folder: 'folders' takes the subfolders of data.root as classes"
    )
    captions: str | None = Field(
        None,
        description="of laion-10k and folder: a .json file (path: captions), a .jsonl file (file_name, text), or 'txt' "
        "for a .txt file beside each image; none: of laion-10k the only .json in data.root, of folder no captions",
    )
    subset: str | None = Field(None, description="of hugging-face: the dataset's configuration, where it has several")
    train_split: str | None = Field(None, description="of hugging-face: what is trained on; none: 'train'")
    held_out_split: str | None = Field(None, description="of hugging-face: what is held out; none: see data.num_train")
    image_column: str | None = Field(None, description="of hugging-face: where the images are; none: 'image'")
    label_column: str | None = Field(None, description="of hugging-face: where the classes are; none: no classes")
    caption_column: str | None = Field(
        None, description="of hugging-face: where the captions are, one or a list; none: no captions"
    )
    cache: str | None = Field(
        None, description="folder that keeps decoded images and maps them into memory; none: decoded at every start"
    )
    num_train: int | None = Field(
        None,
        ge=1,
        description="unique training images; the others are held out, or the test part where there is one; none: all",
    )
    planted_images: int = Field(0, ge=0, description="training images that are repeated, so that they get memorized")
    planted_copies: int = Field(1, ge=1, description="times that each planted image stands in the training set")
    planted_captions: Literal["same", "different"] | None = Field(
        None,
        description="of a planted image, its first caption with all copies, or with each copy the next one of its "
        "captions; none: all of its captions with each",
    )
    flips: bool = Field(False, description="mirror each image left to right, half of the times that it is drawn")
    seed: int = Field(0, ge=0, description="chooses the training images and the planted ones")

    def source(self) -> dict[str, Any]:
        """The arguments of `registry.load_dataset`."""
        arguments = self.model_dump(exclude={"flips", "convert_to"})
        sizes = self.convert_to.split("x") if self.convert_to else None
        return arguments | {"shape": tuple(int(size) for size in sizes) if sizes else None}

    def source_once(self) -> dict[str, Any]:
        """The same of the image set without planted copies: every training image stands in it once."""
        return self.source() | {"planted_images": 0, "planted_copies": 1}

    @model_validator(mode="after")
    def _planted_are_trained(self) -> "DataSettings":
        if self.num_train is not None and self.planted_images > self.num_train:
            raise UserError(f"planted_images {self.planted_images} is more than num_train {self.num_train}")
        return self


class ModelSettings(_Section):
    """The U-Net."""

    kind: Literal["image", "text-to-image"] = Field(
        "image",
        description="image: pixels, by the U-Net below; text-to-image: latents told captions, by the U-Net of "
        "init.model, a pipeline like Stable Diffusion 1 or 2",
    )
    channels: int = Field(128, ge=1, description="channels of the first level")
    multipliers: tuple[PositiveInt, ...] = Field(
        (1, 2, 2, 2), min_length=1, description="channels of each level, times model.channels"
    )
    blocks: int = Field(2, ge=1, description="residual blocks per level")
    attention: tuple[int, ...] = Field((16,), description="heights, in pixels, at which a level has self-attention")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout probability in the residual blocks")
    groups: int = Field(32, ge=1, description="groups of the group normalisation")
    classes: int | None = Field(
        None, ge=1, description="classes that the model is told, those of the image set; none: it is told no class"
    )
    initialization: Literal["diffusers", "ddpm"] = Field(
        "diffusers",
        description="of random weights: as diffusers' layers come; ddpm: Xavier, and almost zero where a residual "
        "branch, attention and the model end. Those of init.model are as they are",
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
_ADDED: dict[str, dict[str, Any]] = {
    "data": {"resize": "bicubic"},
    "model": {"initialization": "diffusers"},
    "method": {"keep_duplicates_together": False},
}


class TextSettings(_Section):
    """What text-to-image is told of its training images (Somepalli et al., NeurIPS 2023, arXiv 2305.20086)."""

    captions: Literal["random", "first"] = Field(
        "random",
        description="which of several captions: each time one at random, against copying; or always the first",
    )
    embedding_noise: float = Field(
        0.0, ge=0, description="deviation of Gaussian noise added to the embedded caption, to mitigate copying; 0: none"
    )
    drop_caption: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="probability that no caption is told, which guidance needs of a training from random weights",
    )
    train_encoder: bool = Field(False, description="train the text encoder, too, together with the U-Net")
    random_caption: float = Field(
        0.0, ge=0, le=1, description="probability that four random words stand in place of the caption, as a mitigation"
    )
    random_tokens: int = Field(
        0, ge=0, le=_MOST_WORDS, description="random words put between those of the caption, as a mitigation"
    )
    random_numbers: int = Field(
        0, ge=0, le=_MOST_WORDS, description="random numbers put between the caption's words, as a mitigation"
    )
    repeat_words: int = Field(
        0, ge=0, le=_MOST_WORDS, description="words of the caption repeated between its words, as a mitigation"
    )
    change_rate: float = Field(
        1.0, gt=0, le=1, description="probability that a caption is changed by the last three, each time it is told"
    )
    too_long: Literal["refuse", "cut"] = Field(
        "refuse", description="captions with more tokens than the text encoder takes: refuse them, or cut them off"
    )

    def changes(self) -> dict[str, Any]:
        """The arguments of `caption_augmentation.Changes`, for training."""
        names = {"random_caption", "random_tokens", "random_numbers", "repeat_words", "change_rate"}
        return self.model_dump(include=names)


class LoraSettings(_Section):
    """Low-rank factors that are trained in place of weights (Hu et al., 2022, arXiv 2106.09685)."""

    rank: int = Field(
        0,
        ge=0,
        description="of text-to-image: rank of what is added to each projection of attention, and alone trained and "
        "averaged, factor by factor; 0: all weights are trained",
    )
    alpha: float | None = Field(
        None, gt=0, description="what is added is multiplied by lora.alpha / lora.rank; none: by 1"
    )


class InitSettings(_Section):
    """What the weights start from."""

    model: str | None = Field(
        None,
        description="a run, a diffusers pipeline folder or a hub id whose weights training starts from; "
        "empty: one must be given; none: random weights",
    )
    revision: str | None = Field(
        None,
        description="of a hub id: its branch, tag or commit; none: 'main'; a run writes down the commit that it was",
    )
    sha256: str | None = Field(
        None,
        pattern="^[0-9a-f]{64}$",
        description="hash of that model, which is refused if it has another; a run writes down that of its own",
    )


class MethodSettings(_Section):
    """Iterative Ensemble Training and Anti-Gradient Control."""

    members: int = Field(1, ge=1, description="learners, and so shards, that are averaged; 1: no ensemble")
    rounds: int = Field(1, ge=1, le=9999, description="times that the members are trained and averaged")
    sharding: Literal["stratified", "random", "contiguous"] = Field(
        "stratified", description="how the training set is cut into shards"
    )
    keep_duplicates_together: bool = Field(
        False, description="images that are equal in every pixel go to one shard, with stratified and random sharding"
    )
    skip_below: float = Field(
        0.0, ge=0, description="skip a sample whose loss is under this share of the loss bank; 0: never"
    )
    decay: float = Field(0.8, ge=0, lt=1, description="share of the loss bank that stays when one loss comes in")
    random_skip: float = Field(
        0.0, ge=0, lt=1, description="skip each sample with this probability, whatever its loss (a control)"
    )

    @model_validator(mode="after")
    def _order_cannot_stay(self) -> "MethodSettings":
        if self.keep_duplicates_together and self.sharding == "contiguous":
            raise UserError(
                "keep_duplicates_together true needs another order than the one that sharding 'contiguous' leaves as "
                "it is: use stratified or random, or leave it out"
            )
        return self


class TrainSettings(_Section):
    """How each member is trained."""

    steps: int = Field(400_000, ge=1, description="optimizer steps of each member in each round")
    batch_size: int = Field(128, ge=1, description="images per optimizer step")
    learning_rate: float = Field(2e-4, gt=0, description="of Adam, after the warm-up")
    weight_decay: float = Field(0.0, ge=0, description="of AdamW; 0 is Adam")
    warmup_steps: int = Field(5000, ge=0, description="steps of a member over which the learning rate rises from 0")
    grad_clip: float = Field(1.0, gt=0, description="largest norm of the gradient")
    ema_decay: float = Field(0.9999, ge=0, le=1, description="share of the weight average that stays at each step")
    seed: int = Field(0, ge=0, description="of weights, shards, batches, timesteps and noise")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "float32",
        description="of convolutions and products; auto: bfloat16 where the device has instructions for it, and a run "
        "writes down which it was",
    )
    compile: bool = Field(False, description="compile the U-Net by torch.compile, which rounds differently")


class SampleSettings(_Section):
    """How a trained model is sampled, unless told otherwise."""

    num: int = Field(65_536, ge=1, description="images")
    steps: int = Field(50, ge=1, le=500, description="of the sampler, per image")
    weights: Literal["raw", "ema"] = Field("raw", description="which weights draw: as trained, or their average")
    first_seed: int = Field(0, ge=0, description="seed of the first image; the others count on from it")
    guidance: float = Field(
        7.5,
        ge=0,
        description="of text-to-image: how far to go from no text to the prompt and beyond; up to 1: no guidance",
    )
    scheduler: Literal["ddim", "dpm++", "pndm", "euler"] = Field(
        "ddim", description="of text-to-image: the sampler; ddim is DDIM with eta 0, dpm++ DPM-Solver++ of order 2"
    )
    random_tokens: int = Field(
        0, ge=0, le=_MOST_WORDS, description="of text-to-image: random words put into each prompt, as a mitigation"
    )
    random_numbers: int = Field(
        0, ge=0, le=_MOST_WORDS, description="of text-to-image: random numbers put into each prompt, as a mitigation"
    )
    repeat_words: int = Field(
        0, ge=0, le=_MOST_WORDS, description="of text-to-image: words of each prompt repeated in it, as a mitigation"
    )
    embedding_noise: float = Field(
        0.0, ge=0, description="of text-to-image: deviation of Gaussian noise on the embedded prompt, as a mitigation"
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field("float32", description="as train.precision")

    def changes(self) -> dict[str, Any]:
        """The arguments of `caption_augmentation.Changes`, for prompts."""
        return self.model_dump(include={"random_tokens", "random_numbers", "repeat_words"})

    @model_validator(mode="after")
    def _seeds_differ(self) -> "SampleSettings":
        if self.first_seed + self.num > 2**32:  # torch's CPU generator would take them modulo 2^32
            raise UserError(f"first_seed {self.first_seed} + num {self.num} is more than 2^32, so seeds would repeat")
        return self


class RunSettings(_Section):
    """What changes the course of a run, not its result."""

    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="where to compute; auto: cuda where there is one"
    )
    threads: int = Field(
        0,
        ge=0,
        description="CPU threads per process; 0: torch's choice. Sums on a CPU round differently with another number",
    )
    save_every: int = Field(
        2000,
        ge=1,
        description="steps of a member between two bundles within a round, up to the next point of its curve",
    )
    log_every: int = Field(50, ge=1, description="steps between two points of a curve")
    preview_images: int = Field(64, ge=0, description="images in the grid drawn after each round; 0: no grids")


class Settings(_Section):
    """Everything that a run depends on."""

    name: str = Field("", description="name of the preset that the run started from")
    description: str = Field("", description="what the preset is, in one line")
    data: DataSettings = DataSettings()  # pyright: ignore[reportCallIssue]
    model: ModelSettings = ModelSettings()  # pyright: ignore[reportCallIssue]
    text: TextSettings = TextSettings()  # pyright: ignore[reportCallIssue]
    lora: LoraSettings = LoraSettings()  # pyright: ignore[reportCallIssue]
    init: InitSettings = InitSettings()  # pyright: ignore[reportCallIssue]
    method: MethodSettings = MethodSettings()  # pyright: ignore[reportCallIssue]
    train: TrainSettings = TrainSettings()  # pyright: ignore[reportCallIssue]
    sample: SampleSettings = SampleSettings()  # pyright: ignore[reportCallIssue]
    run: RunSettings = RunSettings()  # pyright: ignore[reportCallIssue]

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
    validate({"name": str(base)} | merged)  # what follows compares values of the right kinds
    if _is_another_set(own := below.get("data", {}), data := merged.get("data", {})):
        _check_planting(str(base), own, data, content["data"])
        merged |= {"description": content.get("description", _description(str(base), own, data))}
    return merged


def _read_preset(file: Path) -> Settings:
    content = read_toml(file)
    try:
        return validate({"name": file.stem} | _extended(content))
    except UserError as error:
        raise UserError(f"{shown(file)} is no preset: {error}") from None


def validate(content: Mapping[str, Any]) -> Settings:
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
        owner = type(getattr(settings, section[0])) if section else Settings
        is_text = owner.model_fields[field].annotation in (str, str | None)
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


#: Image sets that are whatever lies at data.root; the others have their name wherever they lie.
_SETS_BY_PLACE = ("folder", "hugging-face")


def _changed_images(own: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of section data that change which images are trained on, but for the seed that shuffles them."""
    never = {"download", "cache", "seed"} | (set() if data.get("name") in _SETS_BY_PLACE else {"root", "revision"})
    return {n: data.get(n) for n in DataSettings.model_fields if n not in never and own.get(n) != data.get(n)}


def _is_another_set(own: Mapping[str, Any], data: Mapping[str, Any]) -> bool:
    return not _changed_images(own, data).keys().isdisjoint({"name", "root", "subset"})


def _check_planting(name: str, own: Mapping[str, Any], data: Mapping[str, Any], given: Collection[str]) -> None:
    """Refuse to plant another image set as a preset plants its own, without being asked."""
    count, copies = data.get("planted_images", 0), data.get("planted_copies", 1)
    if "planted_images" not in given and count > 0 and copies > 1:
        change = next(iter(f"data.{key} {value}" for key, value in _changed_images(own, data).items()))
        raise UserError(
            f"{name} plants {count} of its own images {copies} times each, and {change} is another image set: set "
            f"data.planted_images, 0 plants none of it and {count} as many"
        )


def _description(name: str, own: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    changes = (f"data.{key} {'none' if value is None else value}" for key, value in _changed_images(own, data).items())
    return f"As {name}, but {', '.join(changes)}"


def documented(settings: Settings) -> Iterator[tuple[str, Any, str]]:
    """Every setting as (dotted name, value, meaning with unit), in order."""
    for name, field in Settings.model_fields.items():
        value = getattr(settings, name)
        if isinstance(value, _Section):
            for inner, inner_field in type(value).model_fields.items():
                yield f"{name}.{inner}", getattr(value, inner), inner_field.description or ""
        else:
            yield name, value, field.description or ""


def fingerprint(settings: Settings) -> str:
    """SHA-256 of what the trained weights depend on.

    That is the sections data and init (but not where images and model lie), model, text, lora, method and train. A
    setting of `_ADDED` counts only where it is another than before it was one: runs of then keep their identity.
    """
    parts = essence(settings)
    for section, before in _ADDED.items():
        parts[section] = {name: value for name, value in parts[section].items() if (name, value) not in before.items()}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def essence(settings: Settings) -> dict[str, dict[str, Any]]:
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
            f"{folder} holds another run ({'; '.join(changed)}): choose another folder, or the settings of then", "out"
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
    if not file.exists():
        raise UserError(f"{folder} is not a run: it has no config.json")
    content = read_object(file)
    try:
        return validate(content)
    except UserError as error:
        raise UserError(f"{shown(file)} is damaged: {error}") from None


def _preset_folder() -> Any:
    return resources.files("iet_agc.config") / "presets"


def _nearest(name: str, names: list[str]) -> str:
    misplaced = [known for known in names if known.split(".")[-1] == name.split(".")[-1]]
    close = misplaced or difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def _unquoted(text: str) -> str | None:
    if text.lower() == "none":
        return None
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def _parse(text: str, is_list: bool) -> Any:
    if text.lower() == "none":
        return None
    written = f"[{text}]" if is_list and not text.startswith("[") else text
    try:
        return parse_toml(f"value = {written}", "the value")["value"]
    except UserError:
        return text


def _one_line(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    name = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = [known for known, *_ in documented(Settings())]  # pyright: ignore[reportCallIssue]
        return f"unknown setting {name!r}{_nearest(name, known)}"
    reason = first["msg"].removeprefix("Value error, ")
    return (
        f"setting {name}: {reason[0].lower()}{reason[1:]} (it is {one_line(repr(first['input']))})"
        if first["type"] != "value_error"
        else f"setting {name}: {reason}"
    )
