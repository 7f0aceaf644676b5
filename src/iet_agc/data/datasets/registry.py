"""Named image sets, folders and datasets of the hub: what is trained on, what is held out, and what is planted."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any, Literal, TypedDict, Unpack

import PIL
import torch

from iet_agc.data.cache import cached, stamps
from iet_agc.data.conversion import Resize, convert
from iet_agc.data.datasets.afhq import afhq_folders, read_afhq_dog
from iet_agc.data.datasets.captioned_folder import captions_file, read_captioned, read_laion
from iet_agc.data.datasets.cifar import cifar_folder, read_cifar
from iet_agc.data.datasets.digits import read_digits
from iet_agc.data.datasets.emoji import emoji_font, read_emoji
from iet_agc.data.datasets.fashion_mnist import fashion_folder, read_fashion_mnist
from iet_agc.data.datasets.hugging_face import hub_version, read_hugging_face
from iet_agc.data.duplicates import plant_duplicates
from iet_agc.data.folders import load_images
from iet_agc.data.image_set import ImageSet, Parts
from iet_agc.runtime.errors import UserError
from iet_agc.runtime.files import shown
from iet_agc.runtime.seeds import generator

__all__ = ["DATASETS", "Options", "load_dataset", "split"]

#: Image sets that are found by their name alone.
DATASETS = ("digits", "fashion-mnist", "emoji")

#: Options that only some image sets have.
_OPTIONS_OF = {
    "download": ("cifar10", "cifar100", "fashion-mnist"),
    "classes": ("folder",),
    "captions": ("folder", "laion-10k"),
} | dict.fromkeys(
    ("revision", "subset", "train_split", "held_out_split", "image_column", "label_column", "caption_column"),
    ("hugging-face",),
)


class Options(TypedDict, total=False):
    """How some image sets are read.

    Attributes:
        shape: (C, H, W) to bring every image to, by `convert`; None takes them as they are, but AFHQ's dogs as
            3 x 64 x 64, LAION-10k as 3 x 256 x 256 and emoji as 3 x 32 x 32.
        resize: how they are brought to it, see `convert`; "bicubic", unless given.
        download: fetch CIFAR and Fashion-MNIST into `root`, or unpack them there.
        classes: "folders": an image of a folder has the class of the subfolder that it stands in.
        captions: of a folder and LAION-10k, see `read_captioned`; None is LAION-10k's only .json file in `root`,
            and no captions of a folder.
        revision: of a Hugging Face dataset on the hub, a branch, tag or commit; None is "main".
        subset: of a Hugging Face dataset, its configuration.
        train_split: of a Hugging Face dataset, what is trained on; None is "train".
        held_out_split: of a Hugging Face dataset, what is held out; None is what `num_train` leaves.
        image_column: of a Hugging Face dataset; None is "image".
        label_column: of a Hugging Face dataset; None gives no labels.
        caption_column: of a Hugging Face dataset; None gives no captions.
    """

    shape: tuple[int, int, int] | None
    resize: Resize
    download: bool
    classes: str | None
    captions: str | None
    revision: str | None
    subset: str | None
    train_split: str | None
    held_out_split: str | None
    image_column: str | None
    label_column: str | None
    caption_column: str | None


def split(images: ImageSet, num_train: int | None, seed: int = 0) -> tuple[ImageSet, ImageSet]:
    """A random training part and the rest, held out.

    Args:
        images: all of them.
        num_train: size of the training part; None takes all and holds nothing out.
        seed: what shuffles.
    """
    num_train = len(images) if num_train is None else num_train
    if not 1 <= num_train <= len(images):
        raise UserError(f"data.num_train {num_train} is not between 1 and the {len(images)} images of {images.name}")
    order = torch.randperm(len(images), generator=generator("split", seed))
    return images.take(order[:num_train]), images.take(order[num_train:])


def load_dataset(
    name: str,
    root: Path | str | None = None,
    num_train: int | None = None,
    planted_images: int = 0,
    planted_copies: int = 1,
    planted_captions: Literal["same", "different"] | None = None,
    seed: int = 0,
    cache: Path | str | None = None,
    **options: Unpack[Options],
) -> tuple[ImageSet, ImageSet]:
    """The training set of a run and the images held out from it.

    Args:
        name: "digits" (scikit-learn's, 1,797 of 1 x 8 x 8), "fashion-mnist" (70,000 of 1 x 28 x 28), "cifar10" or
            "cifar100" (60,000 of 3 x 32 x 32), "afhq-dog" (3 x 64 x 64), "laion-10k" (3 x 256 x 256, with captions),
            "emoji" (those of a font, 3 x 32 x 32, with captions),
            "hugging-face" for a dataset of the hub or in its layout, or "folder" for the images under `root`.
        root: where the files are, or a dataset's name on the hub; Debian's packages of Fashion-MNIST and of
            the emoji are found by themselves.
        num_train: how many unique images to train on; None takes all. Where a set has a test part it is that which is
            held out, otherwise the images that are not trained on.
        planted_images: how many of them to repeat.
        planted_copies: how often each of these stands in the training set.
        planted_captions: which captions the copies have, see `plant_duplicates`.
        seed: which images are trained on, and which repeated.
        cache: folder in which decoded images are kept for the next time, and mapped into memory from there; not the
            digits, and not in the run that downloads them.
        options: see `Options`.

    Raises:
        UserError: unknown name, missing or damaged files, impossible numbers.
    """
    _check(name, options)
    place = str(root) if root else None

    def read() -> tuple[ImageSet, ImageSet]:
        return _parts(name, place, num_train, seed, options)

    source = _source(name, place, options) if cache else None
    if cache and source:
        train, held_out = cached(Path(cache), source | {"num_train": num_train, "seed": seed}, read)
    else:
        train, held_out = read()
    return plant_duplicates(train, planted_images, planted_copies, planted_captions), held_out


def _check(name: str, options: Options) -> None:
    if name not in _READERS:
        raise UserError(f"unknown data.name {name!r}: use one of {', '.join(_READERS)}")
    for option, names in _OPTIONS_OF.items():
        if options.get(option) and name not in names:
            raise UserError(f"data.{option} has no effect on {name}, it is for {', '.join(names)}: leave it out")


def _parts(
    name: str, root: str | None, num_train: int | None, seed: int, options: Options
) -> tuple[ImageSet, ImageSet]:
    train, test = _READERS[name](root, options)
    shape, by = options.get("shape"), _way(options)
    train, test = (part if part is None or shape is None else convert(part, shape, by) for part in (train, test))
    assert train is not None
    chosen, rest = split(train, num_train, seed)
    return chosen, rest if test is None else test


def _source(name: str, root: str | None, options: Options) -> dict[str, Any] | None:
    """All that the decoded images depend on, for a cache; None where there are no files (yet) to tell them by."""
    if name == "hugging-face" and root and not Path(root).exists():
        origin: Any = hub_version(root, options.get("subset"), options.get("revision"))
    else:
        origin = stamps(_places(name, _path(root), options))
    given = {key: value for key, value in options.items() if key != "download" and value is not None}
    return {"name": name, "options": given, "origin": origin, "decoder": PIL.__version__} if origin else None


def _places(name: str, root: Path | None, options: Options) -> list[Path]:
    """Files, and folders of files, that an image set is read from."""
    if name == "fashion-mnist":
        return _fashion_places(root)
    if name == "emoji":
        return [emoji_font(root)]
    if name == "digits" or root is None:
        return []
    if name in ("cifar10", "cifar100"):
        return [cifar_folder(root, name)]
    if name == "afhq-dog" and root.is_dir():
        return [place for place in afhq_folders(root) if place]
    captions = options.get("captions")
    return [root, captions_file(root, captions)] if captions and captions != "txt" else [root]


def _fashion_places(root: Path | None) -> list[Path]:
    try:
        return [fashion_folder(root)]
    except ValueError:  # what reads it downloads it, or says so
        return []


def _way(options: Options) -> Resize:
    return options.get("resize", "bicubic")


def _path(root: str | None) -> Path | None:
    return Path(root) if root else None


def _folder(root: str | None, options: Options) -> Parts:
    if root is None:
        raise UserError("data.name is 'folder', but data.root does not say which: set data.root")
    captions, shape, by = options.get("captions"), options.get("shape"), _way(options)
    place = Path(root)
    images = read_captioned(place, captions, shape, by) if captions else load_images(place, shape, resize=by)
    return (_with_classes(images, Path(root)) if options.get("classes") == "folders" else images), None


def _with_classes(images: ImageSet, root: Path) -> ImageSet:
    """The images with the class of the subfolder that each stands in, in the order of the folders' names."""
    if images.files is None:
        raise UserError(f"{images.name} is no folder: data.classes 'folders' needs one with a subfolder for each class")
    files = [PurePath(file) for file in images.files]
    if alone := [file for file in files if len(file.parts) < 2]:
        raise UserError(
            f"{images.name}: {alone[0]} stands in no subfolder, so data.classes 'folders' gives it no class"
        )
    names = sorted({file.parts[0] for file in files})
    folders = [entry.name for entry in sorted(root.iterdir()) if entry.is_dir() and not entry.name.startswith(".")]
    if empty := [folder for folder in folders if folder not in names]:
        raise UserError(f"{images.name}: class {shown(empty[0])} has no images: remove the folder or fill it")
    places = {name: place for place, name in enumerate(names)}
    return replace(images, labels=torch.tensor([places[file.parts[0]] for file in files], dtype=torch.int64))


def _hugging_face(root: str | None, options: Options) -> Parts:
    def read(part: str) -> ImageSet:
        return read_hugging_face(
            root,
            part,
            options.get("image_column") or "image",
            options.get("label_column"),
            options.get("subset"),
            options.get("shape"),
            options.get("caption_column"),
            _way(options),
            options.get("revision"),
        )

    held_out = options.get("held_out_split")
    train, test = read(options.get("train_split") or "train"), read(held_out) if held_out else None
    if test is not None and test.shape != train.shape:
        raise UserError(
            f"{train.name}: images of the two splits differ, {train.size} and {test.size}: set data.convert_to"
        )
    return train, test


#: What reads each named image set: (root, options) -> its training images and, where it has one, its test part.
_READERS: dict[str, Callable[[str | None, Options], Parts]] = {
    "digits": lambda root, options: (read_digits(), None),
    "fashion-mnist": lambda root, options: read_fashion_mnist(_path(root), options.get("download", False)),
    "cifar10": lambda root, options: read_cifar(_path(root), "cifar10", options.get("download", False)),
    "cifar100": lambda root, options: read_cifar(_path(root), "cifar100", options.get("download", False)),
    "afhq-dog": lambda root, options: read_afhq_dog(_path(root), options.get("shape"), _way(options)),
    "laion-10k": lambda root, options: (
        read_laion(_path(root), options.get("captions"), options.get("shape"), _way(options)),
        None,
    ),
    "emoji": lambda root, options: (read_emoji(_path(root), options.get("shape"), _way(options)), None),
    "hugging-face": _hugging_face,
    "folder": _folder,
}
