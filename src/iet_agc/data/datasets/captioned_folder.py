"""Folders of images with captions, LAION-10k among them."""

import os
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePath, PurePosixPath

from iet_agc.config.data_settings import FolderData, Laion10kData
from iet_agc.data.captions import is_caption, texts_of
from iet_agc.data.conversion import Resize
from iet_agc.data.datasets.reader import mending_of
from iet_agc.data.folders import load_images, packed_of
from iet_agc.data.image_set import ImageSet, Parts
from iet_agc.data.mending import Mending
from iet_agc.data.packed import packed_texts
from iet_agc.data.tar_files import key_of
from iet_agc.runtime.errors import UserError
from iet_agc.runtime.files import shown
from iet_agc.runtime.packed_files import packed_files
from iet_agc.runtime.reading import parse_json, read_bytes, read_text

__all__ = ["LAION_SHAPE", "captioned_origin", "paths_by_their_ends", "read_captioned", "read_laion"]

#: What the images of LAION-10k are brought to, unless the settings say otherwise: the size of the paper.
LAION_SHAPE = (3, 256, 256)

#: Bytes of a file of captions: those of ten million images.
_LARGEST = 2**31

_MEND = "write it as JSON in UTF-8"

_LAION_HELP = (
    "set data.root to the folder of images; https://github.com/somepago/DCR tells how to get images and captions"
)


def read_laion(data: Laion10kData) -> Parts:
    """Images and captions in the layout of DCR (Somepalli et al.): a folder of images, and a JSON file of captions.

    `data.root` is the folder of images, at any depth; no captions are the only .json file in it. No shape is
    3 x 256 x 256, as in the paper, whose way to resize is bilinear.

    Raises:
        UserError: see `read_captioned`.
    """
    root = data.root_path
    if root is None or not root.is_dir():
        where = "data.root does not say where" if root is None else f"{shown(root)} is no folder"
        raise UserError(f"data.name is 'laion-10k', but {where}: {_LAION_HELP}")
    captions, shape = data.captions or _only_json(root), data.shape or LAION_SHAPE
    return read_captioned(root, captions, shape, data.resize, mending_of(data)), None


def captioned_origin(data: Laion10kData | FolderData) -> list[Path]:
    """The folder, that of held-out images, and the file of captions."""
    root = data.root_path
    if root is None:
        return []
    roots = [root, Path(data.held_out)] if isinstance(data, FolderData) and data.held_out else [root]
    places = [place for each in roots for place in packed_files(each) or [each]]
    return [*places, _captions_file(root, data.captions)] if data.captions and data.captions != "txt" else places


def _only_json(root: Path) -> str:
    if len(found := sorted(root.glob("*.json"))) != 1:
        raise UserError(
            f"{shown(root)} holds {len(found)} .json files: give the captions, one JSON file in data.root or as "
            "data.captions"
        )
    return found[0].name


def read_captioned(
    root: Path,
    captions: str,
    shape: tuple[int, int, int] | None = None,
    resize: Resize = "bicubic",
    mending: Mending = Mending(),  # noqa: B008 (frozen)
) -> ImageSet:
    """The images of a folder, with captions as data in UTF-8; those of images that are left out are left out as well.

    Args:
        root: the folder of images, at any depth; with "txt" also tar archives, see `load_images`.
        captions: a file (in `root`, or else its path), or "txt":
            .jsonl: in each line an object with `file_name`, a path below `root`, and `text`, a caption or a list of
            them (the layout of Hugging Face's imagefolder);
            any other: a JSON object: path of an image -> a caption, or a list of captions. Paths may be those of
            another machine: an image has the captions of the only path that ends with its own path below `root`, or
            has its name;
            "txt": beside each image a .txt file of its name, with a caption in each line; in tar archives, a .txt
            member of its key, what stands before the first dot.
        shape, resize, mending: see `folders.load_images`.

    Raises:
        UserError: images without captions, captions without an image, an empty caption, a file that is not there or
            not of that form, and what `load_images` refuses.
    """
    if captions == "txt" and (packed := packed_of(root)):
        images = load_images(root, shape, resize=resize, mending=mending)
        texts = {name: _lines(text, name) for name, text in packed_texts(packed).items()}
        found = {path: [name] if (name := f"{key_of(path)}.txt") in texts else [] for path in _paths(images)}
        return replace(images, captions=_match(images, texts, found, "their .txt members"))
    if not root.is_dir():
        raise UserError(f"{shown(root)} is no folder: data.captions is for a folder of images, or txt for tar archives")
    if captions == "txt":
        images = load_images(root, shape, resize=resize, mending=mending)
        beside = {path: str(PurePath(path).with_suffix(".txt")) for path in _paths(images)}
        texts = _read_beside(root)
        found = {image: [text] if text in texts else [] for image, text in beside.items()}
        return replace(images, captions=_match(images, texts, found, "its .txt files"))
    file = _captions_file(root, captions)
    lines = file.suffix == ".jsonl"
    texts = _read_lines(file) if lines else _read_captions(file)
    images = load_images(root, shape, resize=resize, mending=mending)
    paths = _paths(images)
    found = {path: [path] if path in texts else [] for path in paths} if lines else paths_by_their_ends(paths, texts)
    return replace(images, captions=_match(images, texts, found, shown(file)))


def _paths(images: ImageSet) -> tuple[str, ...]:
    """Of the images, and of those that were left out: they may have captions."""
    return (*(images.files or ()), *images.left_out)


def _captions_file(root: Path, captions: str) -> Path:
    for place in (root / captions, Path(captions)):
        if place.is_file():
            return place
    raise UserError(
        f"{shown(captions)} is not there: give the captions, one JSON file in data.root or as data.captions, a .jsonl "
        "file, or txt"
    )


def _read_captions(file: Path) -> dict[str, tuple[str, ...]]:
    """Captions by path, of one JSON object."""
    content = parse_json(read_bytes(file, _LARGEST), shown(file), _MEND)
    if not isinstance(content, dict):
        raise UserError(f"{shown(file)} is not a JSON object of paths and captions")
    return {path: texts_of(value, f"{shown(file)}: {shown(path)}") for path, value in content.items()}


def _read_lines(file: Path) -> dict[str, tuple[str, ...]]:
    """Captions by path below the folder, of an object in each line."""
    texts: dict[str, tuple[str, ...]] = {}
    for number, line in enumerate(read_bytes(file, _LARGEST).split(b"\n"), 1):
        where = f"{shown(file)}, line {number}"
        if not line.strip():
            continue
        content = parse_json(line, where, _MEND)
        fields = content if isinstance(content, dict) else {}
        name = fields.get("file_name")
        if not isinstance(name, str) or not name:
            raise UserError(f"{where} has no file_name: write an object with file_name and text in each line")
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise UserError(f"{where}: {shown(name)} leaves the folder: give paths below it")
        if str(path) in texts:
            raise UserError(f"{where}: {shown(name)} stands there more than once: give it a list of captions")
        texts[str(path)] = texts_of(fields.get("text"), f"{where}: {shown(name)}")
    return texts


def _read_beside(root: Path) -> dict[str, tuple[str, ...]]:
    """Captions by path below the folder of the .txt file that holds them."""
    folders = os.walk(root, followlinks=True)
    files = [Path(folder, name) for folder, _, names in folders for name in names if name.endswith(".txt")]
    return {str(file.relative_to(root)): _lines(read_text(file), shown(file)) for file in sorted(files)}


def _lines(text: str, where: str) -> tuple[str, ...]:
    """The captions of one image, one in each line."""
    lines = text.removesuffix("\n").split("\n")
    if empty := [number for number, line in enumerate(lines, 1) if not is_caption(line)]:
        raise UserError(f"{where} has no caption in line {empty[0]}: write one in every line")
    return tuple(line.strip() for line in lines)


def paths_by_their_ends(images: Sequence[str], texts: Collection[str]) -> dict[str, list[str]]:
    """The paths that may be meant by each image's, from whatever machine they come.

    Args:
        images: their paths below the folder, with "/".
        texts: the paths of a file of captions.

    Returns:
        For each image, in order, the paths that end with its own; where none does, all that have its name.
    """
    by_name: dict[str, list[str]] = defaultdict(list)
    for path in texts:
        by_name[PurePath(path).name].append(path)
    return {image: _paths_of(image, by_name[PurePath(image).name]) for image in images}


def _match(
    images: ImageSet, texts: Mapping[str, tuple[str, ...]], found: Mapping[str, list[str]], where: str
) -> tuple[tuple[str, ...], ...]:
    """The captions of each image, every one of them used; `found` are the keys of `texts` that an image may have.

    Those of images that were left out are not used.
    """
    kept = {image: found[image] for image in images.files or ()}
    unsure = [image for image, paths in kept.items() if len(paths) != 1]
    counts = Counter(path for paths in kept.values() for path in paths)
    left = texts.keys() - {path for paths in found.values() for path in paths}
    shared = [path for path, count in counts.items() if count > 1]
    if unsure or left or shared:
        complaints = {"images have no captions of their own": unsure, "captions have no image": sorted(left)}
        complaints["captions fit more than one image"] = shared
        told = [f"{len(odd)} {what}, such as {shown(odd[0])}" for what, odd in complaints.items() if odd]
        raise UserError(f"{images.name} and {where} do not match: {'; '.join(told)}")
    return tuple(texts[paths[0]] for paths in kept.values())


def _paths_of(image: str, paths: list[str]) -> list[str]:
    """Of the paths with an image's name, those that end with its whole path; if none does, all."""
    exact = [path for path in paths if f"/{path}".endswith(f"/{image}")]
    return exact or paths
