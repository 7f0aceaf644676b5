"""Images of a folder: which files count, and what is wrong with the others."""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath

import numpy as np
import PIL
from PIL import Image
from torch import Tensor

from iet_agc.data.arrays import array_images
from iet_agc.data.conversion import Item, Resize, Result, check_target, convert, fit, in_order, planes
from iet_agc.data.decoding import Opener, UnfitError, decode, explain, look, strict_pillow
from iet_agc.data.image_names import IMAGE_SUFFIXES, is_image_name, other_format
from iet_agc.data.image_set import MOST_NAMED, ImageSet
from iet_agc.data.mending import LEAST_IMAGES, Kind, Mending, TreatedFile, UnusableFilesError
from iet_agc.data.packed import packed_images
from iet_agc.data.pixel_store import Pixels, PixelStore, pixels_for
from iet_agc.runtime.errors import UserError
from iet_agc.runtime.files import WriteError, shown
from iet_agc.runtime.packed_files import packed_files, packed_in
from iet_agc.runtime.paths import check_images_place

__all__ = ["image_files", "image_sizes", "load_images", "packed_of", "read_images"]


def load_images(
    path: Path,
    shape: tuple[int, int, int] | None = None,
    on_images: Callable[[int], object] = lambda count: None,
    in_colour: bool = False,
    resize: Resize = "bicubic",
    mending: Mending | None = Mending(),  # noqa: B008 (frozen)
    store: PixelStore | None = None,
) -> ImageSet:
    """Images of a folder (any depth), of tar archives or parquet tables, or of one .npz or .npy file.

    Folders: PNG, JPEG, WebP, BMP, GIF, TIFF and netpbm files in the order of their paths, whatever the number of
    threads; other files are no images. Links are followed, and a file with two paths counts twice. A set is grey
    when every image is, by its colour mode or by a palette without colours; otherwise grey images get three equal
    channels. Pixels are taken as stored: colour profiles are not applied. Unasked no image is left out and nothing
    guessed: a file that is damaged, animated, transparent in places, to be turned by its EXIF data, of more than 8
    bits or of other colours than grey and RGB is an error. With `mending` the set is that of a folder in which such
    files were mended or are not there, pixel by pixel, and `ImageSet.treated` lists them.

    Archives and tables: the images in tar archives in webdataset's layout, or in parquet tables in Hugging Face's, see
    `packed_images`, by the same rules; they are read where they lie. A folder without image files is that of the
    archives or tables in it.

    Arrays: uint8 (N, C, H, W), (N, H, W, C) or grey (N, H, W); of an .npz the array "images", or the only one.
    Nothing is unpickled.

    Args:
        path: the folder or the file, or a pattern of archives or tables, see `packed_files`.
        shape: (C, H, W) to bring every image to, as `convert` does; None takes images of one size as they are.
        on_images: called with a number of images that were read, for progress.
        in_colour: whether a grey file in a folder is an error.
        resize: how images are brought to `shape`, see `convert`.
        mending: what to do about files that cannot be used; None refuses them, where nothing else can be asked for.
            Of an array file, no effect.
        store: for the pixels of large sets; None: these are held in memory.

    Raises:
        UnusableFilesError: files that cannot be used (what is wrong with the first five, how many of each kind, and
            what would mend them), or images of several sizes.
        UserError: nothing there, more than the machine's memory holds, or `mending` with a size beside `shape`.
    """
    if shape is not None:
        check_target(shape, resize)
    packed = packed_files(path)
    if packed or os.path.isdir(path):
        openers, bad = _found_in(path, packed) if packed else _openers(path)
        store = store and store.of(packed or [path])
        return read_images(openers, shown(path), shape, bad, on_images, in_colour, resize, mending, store)
    check_images_place(path)
    images = ImageSet(array_images(path), name=shown(path))
    on_images(len(images))
    return convert(images, shape, resize, store and store.of([path])) if shape else images


def packed_of(path: Path) -> list[Path]:
    """The archives or tables that `load_images` reads; nothing where it reads image files or an array."""
    if os.path.isdir(path):
        return packed_in(path) if not any(_list_images(path)) else []
    return packed_files(path)


#: What opens each image, by its name; and what cannot be an image.
_Found = tuple[dict[PurePath, Opener], dict[PurePath, UnfitError]]


def _openers(folder: Path) -> _Found:
    """Of the image files of a folder; where it has none, of the archives or tables in it."""
    files, bad = _list_images(folder)
    if not files and not bad:
        if packed := packed_in(folder):
            return _found_in(folder, packed)
        raise _no_images(folder)
    return (
        {file.relative_to(folder): partial(open, file, "rb") for file in files},
        {file.relative_to(folder): reason for file, reason in bad.items()},
    )


def _found_in(path: Path, files: Sequence[Path]) -> _Found:
    openers, bad = packed_images(files)
    if not openers and not bad:
        raise _no_images(path)
    return openers, bad


def read_images(
    files: Mapping[PurePath, Opener],
    where: str,
    shape: tuple[int, int, int] | None = None,
    bad: Mapping[PurePath, UnfitError] | None = None,
    on_images: Callable[[int], object] = lambda count: None,
    in_colour: bool = False,
    resize: Resize = "bicubic",
    mending: Mending | None = Mending(),  # noqa: B008 (frozen)
    store: PixelStore | None = None,
) -> ImageSet:
    """Image files from anywhere, decoded by the rules of `load_images`.

    Args:
        files: what opens each, by its name; the images keep this order.
        where: what holds them all, for messages.
        shape: see `load_images`.
        bad: what is there and cannot be an image, by its name, with the reason.
        on_images: see `load_images`.
        in_colour: whether a grey file is an error.
        resize, mending, store: see `load_images`.

    Raises:
        UserError: see `load_images`.
    """
    how = mending or Mending()
    if shape is not None:
        check_target(shape, resize)
        if how.size:
            option = "resize" if how.resize else "crop"
            raise UserError(f"images are brought to a size by convert_to and by {option}: leave one out", option)
    bad, count, files = dict(bad or {}), len(files) + len(bad or {}), dict(files)
    reading = _Reading(where, shape, in_colour, resize, how, mending is not None, store)
    with strict_pillow():
        out, found = reading.attempt(files, bad, on_images)
        # what is left out has no say in the common shape, and leaves no gap: what remains is read for itself
        while out is None and len(files) >= LEAST_IMAGES and all(how.leaves_out(bad[file].kind) for file in bad):
            out, found = reading.attempt(files, bad)
    if out is None or (bad and len(files) < LEAST_IMAGES):
        raise _complaint(where, bad, count, mending)
    treated = [*found, *(_treated(path, bad[path].kind, "left out", str(bad[path])) for path in bad)]
    names = tuple(shown(file) for file in files)
    treated.sort(key=lambda file: file.path)
    return ImageSet(out, name=where, files=names, treated=tuple(treated))


def image_sizes(folder: Path, mending: Mending = Mending()) -> dict[str, tuple[int, int, int]]:  # noqa: B008 (frozen)
    """(C, H, W) of the image files of a folder, by path below it, from their headers alone.

    Files whose headers cannot be used are not among them; `load_images` says of each what is wrong.

    Args:
        folder: it.
        mending: see `load_images`.

    Raises:
        UserError: no folder, or no images in it.
    """
    if not os.path.isdir(folder):
        raise UserError(f"{shown(folder)} is no folder: give the folder that holds the images")
    openers, _ = _openers(folder)
    with strict_pillow():
        found = _attempt(partial(look, mending=mending), openers, {})
    return {shown(file): shape for file, shape in found.items()}


def image_files(
    folder: Path,
    mending: Mending = Mending(),  # noqa: B008 (frozen)
) -> tuple[list[PurePath], list[TreatedFile]]:
    """The files of a folder that are read as images, by their names alone.

    Args:
        folder: it.
        mending: whether files that cannot be images are left out.

    Returns:
        Their paths below it, in order; and the files that are left out.

    Raises:
        UnusableFilesError: such files, where they are not left out.
        UserError: no images.
    """
    files, bad = _list_images(folder)
    if not files and not bad:
        raise _no_images(folder)
    found: dict[PurePath, UnfitError] = {path.relative_to(folder): reason for path, reason in bad.items()}
    if not files or not all(mending.leaves_out(reason.kind) for reason in found.values()):
        raise _complaint(shown(folder), found, len(files) + len(found), mending)
    return (
        [file.relative_to(folder) for file in files],
        [_treated(path, found[path].kind, "left out", str(found[path])) for path in sorted(found)],
    )


def _no_images(folder: Path) -> UserError:
    return UserError(f"{shown(folder)} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")


@dataclass(frozen=True)
class _Reading:
    """How files are read; see `read_images`."""

    where: str
    shape: tuple[int, int, int] | None
    in_colour: bool
    resize: Resize
    mending: Mending
    can_be_asked: bool
    store: PixelStore | None

    def attempt(
        self,
        files: dict[PurePath, Opener],
        bad: dict[PurePath, UnfitError],
        on_images: Callable[[int], object] = lambda count: None,
    ) -> tuple[Tensor | None, list[TreatedFile]]:
        """The pixels of all files, uint8 (N, C, H, W), and what was mended; no pixels where more files proved bad.

        Bad files go from `files` to `bad`. Those that are known beforehand do not count where they are left out.
        """
        looks = _attempt(partial(look, mending=self.mending), files, bad) if self.shape is None else {}
        before = {file for file in bad if self.mending.leaves_out(bad[file].kind)}
        known = list(files) if self.shape else list(looks)
        # with bad files nothing is kept; the others are decoded all the same, to name all that is wrong at once
        shape, odd = None, None
        if known and not bad.keys() - before:
            try:
                shape = self.shape or self._one_shape(looks)
            except UnusableFilesError as error:
                if self.mending.on_bad == "fail":
                    raise
                odd = error  # unless those of another size are left out
        del looks
        with self._place(known, shape) as pixels:
            done = self._decoded(known, files, pixels, shape, bad, on_images)
        for file in bad.keys() & files.keys():
            del files[file]
        if odd and not bad.keys() - before:
            raise odd
        found = [
            _treated(file, kind, how, f"was {kind}") for file, mended in done.items() for kind, how in mended.items()
        ]
        return (None if pixels is None or bad.keys() - before else pixels.images()), found

    @contextmanager
    def _place(self, known: Sequence[PurePath], shape: tuple[int, int, int] | None) -> Generator[Pixels | None]:
        """Where the pixels of files are put; None where their shape is not known."""
        if shape is None:
            yield None
            return

        def key() -> object:
            names = hashlib.sha256(b"\0".join(os.fsencode(file) for file in known)).hexdigest()
            return ["decoded", PIL.__version__, names, self.resize, self.mending.asked]

        what = f"{len(known)} images of {self.where}"
        with pixels_for((len(known), *shape), what, self.store, key) as pixels:
            yield pixels

    def _decoded(
        self,
        known: Sequence[PurePath],
        files: Mapping[PurePath, Opener],
        pixels: Pixels | None,
        shape: tuple[int, int, int] | None,
        bad: dict[PurePath, UnfitError],
        on_images: Callable[[int], object],
    ) -> dict[PurePath, dict[Kind, str]]:
        """Decode files into their places; what was mended, by file. Those that cannot be used go to `bad`."""

        def fill(at: int) -> dict[Kind, str]:
            if pixels is not None and pixels.has(at):
                return {}  # what is mended is not kept
            image, mended = decode(files[known[at]], self.mending)
            if self.mending.size and image.size != self.mending.size[::-1]:
                image, mended["other-size"] = self._sized(image, *self.mending.size)
            if self.in_colour and image.mode != "RGB":
                raise UnfitError("is grey, where three channels are expected: give the set's own files", "grey")
            if pixels is not None and shape is not None:
                fitted = fit(image, self.shape, self.resize) if self.shape else image
                pixels.put(at, _checked(planes(fitted), shape), keep=not mended)
            return mended

        done = _attempt(fill, {file: at for at, file in enumerate(known)}, bad, on_images)
        return {file: mended for file, mended in done.items() if mended}

    def _one_shape(self, looks: dict[PurePath, tuple[int, int, int]]) -> tuple[int, int, int]:
        """The (C, H, W) of a set whose images have one size, or get one; grey among colours counts as colour."""
        channels = max(look[0] for look in looks.values())
        if self.mending.size:
            return channels, *self.mending.size
        sizes = Counter(look[1:] for look in looks.values())
        height, width = sizes.most_common(1)[0][0]
        odd = [file for file, look in looks.items() if look[1:] != (height, width)]
        if odd:
            like = next(file for file, look in looks.items() if look[1:] == (height, width))
            problem = (
                f"{self.where}: {len(odd)} of {len(looks)} images have another size: "
                f"{shown(odd[0])} is {looks[odd[0]][2]} x {looks[odd[0]][1]}, "
                f"{shown(like)} is {width} x {height} (width x height): all images of a set must have "
                "one size; an audit brings them to one by resize or crop HxW or by convert_to CxHxW, a training by "
                "data.crop or data.convert_to"
            )
            refused = [
                _treated(file, "other-size", "refused", f"is {looks[file][2]} x {looks[file][1]} (width x height)")
                for file in odd
            ]
            mends = {"resize": f"{height}x{width}", "convert_to": f"{channels}x{height}x{width}"}
            raise UnusableFilesError(problem, self.where, refused, mends if self.can_be_asked else {})
        return channels, height, width

    def _sized(self, image: Image.Image, height: int, width: int) -> tuple[Image.Image, str]:
        """An image of another size as it is asked to be mended, and what was done."""
        if self.mending.resize:
            resized = fit(image, (len(image.getbands()), height, width), self.resize)
            return resized, f"resized to {height}x{width}"
        if image.width < width or image.height < height:
            what = f"is {image.width} x {image.height}, smaller than what is to be cut out: resize it or remove it"
            raise UnfitError(what, "too-small")
        left, top = (image.width - width) // 2, (image.height - height) // 2
        return image.crop((left, top, left + width, top + height)), f"cropped to {height}x{width}"


def _treated(path: PurePath, kind: str, done: str, reason: str) -> TreatedFile:
    return TreatedFile(shown(path), kind, done, reason)


def _list_images(folder: Path) -> tuple[list[Path], dict[Path, UnfitError]]:
    """Image files under a folder, in the order of their paths; and what cannot be one, with the reason."""
    files: list[Path] = []
    bad: dict[Path, UnfitError] = {}
    todo: list[tuple[Path, tuple[str, ...]]] = [(folder, (os.path.realpath(folder),))]
    while todo:
        here, chain = todo.pop()
        try:
            with os.scandir(here) as entries:
                paths = [Path(entry.path) for entry in entries]
        except OSError as error:
            bad[here] = UnfitError(str(explain(error)), "folder")
            continue
        for path in paths:
            if os.path.isdir(path):
                real = os.path.realpath(path) if path.is_symlink() else os.path.join(chain[-1], path.name)
                if path.is_symlink() and any(os.path.commonpath([one, real]) == real for one in chain):
                    bad[path] = UnfitError("is a link to a folder that it stands in: remove it", "no-file")
                else:
                    todo.append((path, (*chain, real)))
            elif reason := _not_a_file(path):
                bad[path] = reason
            elif is_image_name(path.name):
                files.append(path)
    return sorted(files), bad


def _not_a_file(path: Path) -> UnfitError | None:
    """Why something cannot be opened that is named like an image, or may have been a folder of them."""
    if reason := other_format(path.name):
        return reason
    if not os.path.exists(path):
        return UnfitError("is a link to nothing: mend the link or remove it", "no-file")
    if is_image_name(path.name) and not os.path.isfile(path):
        return UnfitError("is a pipe, a socket or a device, no file: remove it", "no-file")
    return None


def _attempt(
    work: Callable[[Item], Result],
    items: Mapping[PurePath, Item],
    bad: dict[PurePath, UnfitError],
    on_images: Callable[[int], object] = lambda count: None,
) -> dict[PurePath, Result]:
    """The work on every item, by its name; those where it fails are entered into `bad` instead."""

    def outcome(item: Item) -> Result | UnfitError:
        try:
            return work(item)
        except WriteError:
            raise
        except Exception as error:  # damaged files make decoders raise nearly anything
            return explain(error)

    done: dict[PurePath, Result] = {}
    for file, result in zip(items, in_order(outcome, list(items.values()), on_images), strict=True):
        if isinstance(result, UnfitError):
            bad[file] = result
        else:
            done[file] = result
    return done


def _complaint(where: str, bad: dict[PurePath, UnfitError], count: int, mending: Mending | None) -> UnusableFilesError:
    """One line about all that cannot be used."""
    kept = [path for path in sorted(bad) if not (mending and mending.leaves_out(bad[path].kind))] or sorted(bad)
    named = [f"{shown(path)} {bad[path]}" for path in kept[:MOST_NAMED]]
    if len(bad) > len(named):
        named.append(f"and {len(bad) - len(named)} more")
    refused = [_treated(path, bad[path].kind, "refused", str(bad[path])) for path in sorted(bad)]
    if mending and all(mending.leaves_out(reason.kind) for reason in bad.values()):
        named.append(f"without them fewer than {LEAST_IMAGES} images remain")
    problem = f"{where}: {len(bad)} of {count} files cannot be used"
    return UnusableFilesError.of(problem, "; ".join(named), where, refused, mending)


def _checked(planes: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """The planes of an image of that shape, or of a grey one among colours."""
    if planes.shape[0] > shape[0] or planes.shape[1:] != shape[1:]:
        raise UnfitError("is not what its header says, or changed while it was read: try again")
    return planes
