"""The image sets: a class of settings for each, with the options that it has and no others. Imports no torch.

What reads each stands in `data.datasets`. To add one, write its class here, put it into `Data`, and give its reader a
row in `data.datasets.registry`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self, get_args

from pydantic import BeforeValidator, Field, model_serializer, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError
from pydantic_core.core_schema import SerializerFunctionWrapHandler

from iet_agc.config.section import Section
from iet_agc.runtime.errors import UserError

__all__ = [
    "DATA_OPTIONS",
    "IMAGE_SETS",
    "AfhqDogData",
    "CifarData",
    "Data",
    "DataSettings",
    "DigitsData",
    "EmojiData",
    "FashionMnistData",
    "FolderData",
    "HuggingFaceData",
    "Laion10kData",
    "found_by_name",
    "names_with",
]


class DataSettings(Section, frozen=True):
    """Which images are trained on, and which are held out: what all image sets have."""

    #: Whether the set is whatever lies at `root`, so that another root is another set.
    is_what_lies_there: ClassVar[bool] = False
    #: Whether the set is found without `root`.
    is_found_by_name: ClassVar[bool] = False

    name: str = Field(
        description="image set; folder: the images below data.root; hugging-face: a dataset of the hub or in its layout"
    )
    root: str | None = Field(
        default=None,
        description="folder, archive or file of the image set; of hugging-face a local folder, or a dataset's name on "
        "the hub",
    )
    convert_to: str | None = Field(
        default=None,
        pattern=r"^[13]x[1-9]\d{0,4}x[1-9]\d{0,4}$",
        description="size CxHxW that every image is brought to, such as 3x64x64; none: as it is, but afhq-dog "
        "3x64x64, laion-10k 3x256x256, emoji 3x32x32",
    )
    resize: Literal["bicubic", "bilinear"] = Field(
        default="bicubic",
        description="interpolation for data.convert_to: bicubic, of the exact centre crop; bilinear, by torchvision's "
        "Resize and CenterCrop, as in the paper",
    )
    cache: str | None = Field(
        default=None,
        description="folder of decoded images, which later starts map into memory; none: decoded at every start",
    )
    num_train: int | None = Field(
        default=None,
        ge=1,
        description="number of unique training images; the others are held out, or the test part where there is one; "
        "none: all",
    )
    deduplicate: Literal["exact", "near"] | None = Field(
        default=None,
        description="train on one image of each group of copies, the first: exact, of images equal pixel by pixel; "
        "near, of re-encoded, resized, mirrored or slightly cropped ones as well; none: on all. Done before images are "
        "held out and planted",
    )
    planted_images: int = Field(
        default=0,
        ge=0,
        description="number of training images that are duplicated, so that they get memorized; at most data.num_train",
    )
    planted_copies: int = Field(
        default=1, ge=1, description="how often each duplicated image stands in the training set; 1: no duplicates"
    )
    planted_kind: Literal["exact", "shifted", "brightness"] = Field(
        default="exact",
        description="further copies of duplicated images: exact; shifted, near copies moved by up to an eighth of each "
        "side; brightness, near copies of 0.7 to 1.3 times the levels",
    )
    planted_captions: Literal["same", "different"] | None = Field(
        default=None,
        description="captions of duplicated images: same, the first one with every copy; different, the next one with "
        "each copy; none: all of them with each",
    )
    caption: str | None = Field(
        default=None,
        description="conditioning text of every image of a set without captions, such as 'a photo of sks dog'; "
        "{class} in it is the name of the subfolder where data.classes is folders; none: no captions but those of the "
        "set",
    )
    flips: bool = Field(default=False, description="random horizontal flips of training images, with probability 0.5")
    seed: int = Field(
        default=0, ge=0, description="random seed of the choice of training images and of duplicated ones"
    )

    @property
    def shape(self) -> tuple[int, int, int] | None:
        """(C, H, W) of `convert_to`."""
        if self.convert_to is None:
            return None
        channels, height, width = map(int, self.convert_to.split("x"))
        return channels, height, width

    @property
    def root_path(self) -> Path | None:
        """`root` as a path."""
        return Path(self.root) if self.root else None

    def without_copies(self) -> Self:
        """The same images, each of them once in the training set."""
        nothing = {"planted_images": 0, "planted_copies": 1, "planted_kind": "exact", "planted_captions": None}
        return self.model_copy(update=nothing)

    @model_validator(mode="before")
    @classmethod
    def _no_option_is_ignored(cls, content: object) -> object:
        """Leave out options of other sets that are not set, as a run's config.json has them, and refuse the others."""
        if not isinstance(content, Mapping):
            return content
        foreign = {name: value for name, value in content.items() if name in DATA_OPTIONS.keys() - cls.model_fields}
        for name, value in foreign.items():
            if value != DATA_OPTIONS[name].default:
                own = content.get("name", cls.model_fields["name"].default)
                told = {"option": name, "set": own, "names": ", ".join(names_with(name))}
                raise PydanticCustomError(
                    "no_effect", "data.{option} has no effect on {set}, it is for {names}: leave it out", told
                )
        return {name: value for name, value in content.items() if name not in foreign}

    @model_validator(mode="after")
    def _planted_are_trained(self) -> Self:
        if self.num_train is not None and self.planted_images > self.num_train:
            raise UserError(f"planted_images {self.planted_images} is more than num_train {self.num_train}")
        return self

    @model_validator(mode="after")
    def _one_caption_for_all(self) -> Self:
        if self.caption is None:
            return self
        if not self.caption.strip():
            raise UserError("caption is empty: say what the images show, or leave it out")
        if getattr(self, "captions", None):
            raise UserError("caption is one text for all images, and captions has one for each: leave one of them out")
        if "{class}" in self.caption and getattr(self, "classes", None) is None:
            raise UserError("caption has {class}, the name of an image's subfolder: set data.classes to folders")
        return self

    @model_serializer(mode="wrap")
    def _as_runs_have_it(self, dump: SerializerFunctionWrapHandler) -> dict[str, object]:
        """With the options in `_IN_EVERY_RUN` that this set does not have, at their defaults."""
        own: dict[str, object] = dump(self)
        return {name: own.get(name, DATA_OPTIONS[name].default) for name in _IN_EVERY_RUN} | own


class _Downloaded(DataSettings, frozen=True):
    download: bool = Field(default=False, description="download the set into data.root, or unpack its archive there")


class _ImageFiles(DataSettings, frozen=True):
    orient: bool = Field(
        default=False, description="turn images as their EXIF orientation says; false: such files are refused"
    )
    background: str | None = Field(
        default=None,
        pattern=r"^(white|black|#[0-9a-fA-F]{6})$",
        description="colour that transparent images are put on: white, black or #rrggbb; none: such files are refused",
    )
    on_bad: Literal["fail", "skip"] = Field(
        default="fail",
        description="files that cannot be used: fail, the set is refused; skip, they are left out, counted and listed "
        "in RUN/mending.csv",
    )
    crop: str | None = Field(
        default=None,
        pattern=r"^[1-9]\d{0,4}x[1-9]\d{0,4}$",
        description="size HxW that is cut out of the middle of larger images, such as 64x64, pixels as they are; none: "
        "not cut, see data.convert_to",
    )


class _Captioned(_ImageFiles, frozen=True):
    captions: str | None = Field(
        default=None,
        description="conditioning text: a .json file (path: captions), a .jsonl file (file_name, text), or 'txt' for "
        "a .txt file beside each image; none: of laion-10k the only .json in data.root, of folder no "
        "captions",
    )


class DigitsData(DataSettings, frozen=True):
    """scikit-learn's digits."""

    is_found_by_name: ClassVar[bool] = True
    name: Literal["digits"] = Field(default="digits")


class FashionMnistData(_Downloaded, frozen=True):
    """Fashion-MNIST."""

    is_found_by_name: ClassVar[bool] = True
    name: Literal["fashion-mnist"] = Field(default="fashion-mnist")


class CifarData(_Downloaded, frozen=True):
    """CIFAR-10 or CIFAR-100."""

    name: Literal["cifar10", "cifar100"] = Field()


class AfhqDogData(DataSettings, frozen=True):
    """The dogs of AFHQ."""

    name: Literal["afhq-dog"] = Field(default="afhq-dog")


class Laion10kData(_Captioned, frozen=True):
    """Images and captions in the layout of DCR."""

    name: Literal["laion-10k"] = Field(default="laion-10k")


class EmojiData(DataSettings, frozen=True):
    """The emoji of a font, with their names as captions."""

    is_found_by_name: ClassVar[bool] = True
    name: Literal["emoji"] = Field(default="emoji")


class HuggingFaceData(_ImageFiles, frozen=True):
    """A dataset of the Hugging Face hub, or a folder in its layout."""

    is_what_lies_there: ClassVar[bool] = True
    name: Literal["hugging-face"] = Field(default="hugging-face")
    revision: str | None = Field(
        default=None, description="branch, tag or commit of a dataset on the hub; none: 'main'"
    )
    subset: str | None = Field(default=None, description="configuration of the dataset, where it has several")
    train_split: str | None = Field(default=None, description="name of the training split; none: 'train'")
    held_out_split: str | None = Field(
        default=None, description="name of the held-out split; none: what data.num_train leaves"
    )
    image_column: str | None = Field(default=None, description="column of images; none: 'image'")
    label_column: str | None = Field(
        default=None, description="column of class labels, whole numbers from 0; none: no labels"
    )
    caption_column: str | None = Field(
        default=None, description="column of captions, one text or a list of them per image; none: no captions"
    )


class FolderData(_Captioned, frozen=True):
    """The images under a folder, or of an array file."""

    is_what_lies_there: ClassVar[bool] = True
    name: Literal["folder"] = Field(default="folder")
    held_out: str | None = Field(
        default=None,
        description="folder of the images that are held out; none: what data.num_train leaves of data.root",
    )
    classes: Literal["folders"] | None = Field(
        default=None,
        description="where class labels come from: 'folders', one class per subfolder of data.root; none: no labels",
    )


_AnyData = (
    DigitsData | FashionMnistData | CifarData | AfhqDogData | Laion10kData | EmojiData | HuggingFaceData | FolderData
)


def _digits_unless_named(content: object) -> object:
    return {"name": "digits"} | content if isinstance(content, dict) else content


#: Settings of one image set; `name` says of which.
Data = Annotated[_AnyData, Field(discriminator="name"), BeforeValidator(_digits_unless_named)]

#: The class of settings of each image set, by its name.
IMAGE_SETS: dict[str, type[DataSettings]] = {
    name: kind for kind in get_args(_AnyData) for name in get_args(kind.model_fields["name"].annotation)
}

#: Options that a run's config.json and fingerprint have whatever its image set, in this order: once they were options
#: of all sets. An option that comes later belongs to the runs of its own set only, and is not to be added here.
_IN_EVERY_RUN = (
    *("name", "root", "revision", "download", "convert_to", "resize", "classes", "captions", "subset", "train_split"),
    *("held_out_split", "image_column", "label_column", "caption_column", "cache", "num_train", "planted_images"),
    *("planted_copies", "planted_captions", "flips", "seed"),
)


def _options() -> dict[str, FieldInfo]:
    every: dict[str, FieldInfo] = {}
    for kind in (DataSettings, *IMAGE_SETS.values()):
        every = kind.model_fields | every
    return {name: every[name] for name in dict.fromkeys((*_IN_EVERY_RUN, *every))}


#: Every option that some image set has.
DATA_OPTIONS = _options()


def found_by_name(name: str) -> DataSettings | None:
    """The settings of an image set that needs no `root`; None of any other name."""
    kind = IMAGE_SETS.get(name)
    return kind.model_validate({"name": name}) if kind and kind.is_found_by_name else None


def names_with(option: str) -> list[str]:
    """The image sets that have an option."""
    return [name for name, kind in IMAGE_SETS.items() if option in kind.model_fields]
