"""Images in memory: every kind gives the same pixels, and what would have to be guessed is refused in one line."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, TensorDataset

from iet_agc.data.datasets.in_memory import load_in_memory
from iet_agc.data.image_set import ImageSet
from iet_agc.runtime.errors import UserError

COLOUR = torch.randint(256, (6, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
GREY = COLOUR[:, :1]


def pil(images: torch.Tensor) -> list[Image.Image]:
    arrays = images.permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(np.ascontiguousarray(array[..., 0] if array.shape[2] == 1 else array)) for array in arrays]


class Items(Dataset[Any]):
    """A torch dataset of anything."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, place: int) -> Any:
        return self.items[place]


def table(images: list[Image.Image], **columns: list[int]) -> Any:
    datasets = pytest.importorskip("datasets")
    features = {"image": datasets.Image()} | {name: datasets.ClassLabel(num_classes=9) for name in columns}
    return datasets.Dataset.from_dict({"image": images, **columns}, features=datasets.Features(features))


@pytest.mark.parametrize(
    "given",
    [
        lambda: COLOUR,
        COLOUR.numpy,
        lambda: COLOUR.permute(0, 2, 3, 1),
        lambda: COLOUR.permute(0, 2, 3, 1).numpy(),
        lambda: list(COLOUR),
        lambda: tuple(COLOUR.permute(0, 2, 3, 1).numpy()),
        lambda: pil(COLOUR),
        lambda: TensorDataset(COLOUR),
        lambda: Items(pil(COLOUR)),
        lambda: ImageSet(COLOUR, "mine"),
        lambda: table(pil(COLOUR)),
    ],
)
def test_every_kind_gives_the_same_pixels(given: Callable[[], Any]) -> None:
    found = load_in_memory(given())
    assert torch.equal(found.images, COLOUR)
    assert found.images.is_contiguous()
    assert found.labels is None
    assert "6" in found.name or found.name == "mine"


@pytest.mark.parametrize(
    "given", [lambda: GREY, lambda: GREY[:, 0], GREY[:, 0].numpy, lambda: pil(GREY), lambda: [*GREY[:, 0]]]
)
def test_grey_has_one_channel(given: Callable[[], Any]) -> None:
    assert torch.equal(load_in_memory(given()).images, GREY)


def test_grey_among_colours_gets_three_equal_channels() -> None:
    found = load_in_memory([*pil(GREY[:1]), *pil(COLOUR[1:])]).images
    assert torch.equal(found[0], GREY[0].expand(3, -1, -1))
    assert torch.equal(found[1:], COLOUR[1:])


def test_tensors_and_arrays_in_order_are_not_copied() -> None:
    assert load_in_memory(COLOUR).images.data_ptr() == COLOUR.data_ptr()
    assert load_in_memory(COLOUR.numpy()).images.data_ptr() == COLOUR.data_ptr()


@pytest.mark.parametrize(
    "given",
    [
        lambda: TensorDataset(COLOUR, torch.arange(6) % 4),
        lambda: Items([(image, number % 4) for number, image in enumerate(pil(COLOUR))]),
        lambda: Items([[image, np.int32(number % 4)] for number, image in enumerate(COLOUR)]),
        lambda: table(pil(COLOUR), label=[0, 1, 2, 3, 0, 1]),
    ],
)
def test_classes_of_datasets_come_along(given: Callable[[], Any]) -> None:
    labels = load_in_memory(given()).labels
    assert labels is not None
    assert labels.dtype == torch.int64
    assert labels.tolist() == [0, 1, 2, 3, 0, 1]


def turned() -> Image.Image:
    image = pil(COLOUR)[0]
    image.getexif()[0x0112] = 6
    return image


def transparent() -> Image.Image:
    image = pil(GREY)[0]
    image.info["transparency"] = 3
    return image


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (lambda: COLOUR / 255, "float32 .* range of other numbers is not guessed: give uint8"),
        (lambda: COLOUR.numpy().astype(np.float64), "float64 .* not guessed"),
        (lambda: COLOUR.to(torch.int64), "int64 .* not guessed"),
        (lambda: [*COLOUR / 255], r"number 0 holds float32 .* not guessed"),
        (lambda: TensorDataset(COLOUR / 255), "number 0 holds float32 .* not guessed"),
        (lambda: COLOUR[:, :2], r"uint8 \(6, 2, 8, 8\), not"),
        (lambda: COLOUR[:0], "holds no images"),
        (lambda: COLOUR[0, 0, 0], r"uint8 \(8,\), not"),
        (lambda: torch.tensor(3, dtype=torch.uint8), r"uint8 \(\), not"),
        (list, "holds no images"),
        (lambda: Items([]), "holds no images"),
        (lambda: [COLOUR[0], COLOUR[1, :, :4]], "number 1 is 8 x 4, number 0 is 8 x 8"),
        (lambda: [COLOUR[0], "cat.png"], "number 1 is of type str and no image"),
        (lambda: [pil(COLOUR)[0].convert("RGBA")], r"number 0 has mode RGBA: convert\('RGB'\)"),
        (lambda: [Image.new("I;16", (8, 8))], "mode I;16"),
        (lambda: [turned()], "EXIF orientation: PIL.ImageOps.exif_transpose"),
        (lambda: [transparent()], "transparent in places"),
        (lambda: Items([(COLOUR[0], 1), COLOUR[1]]), r"not all images, all \(image,\) or all \(image, class\)"),
        (lambda: Items([(COLOUR[0], 1, 2)]), r"not all images, all \(image,\)"),
        (lambda: Items([(COLOUR[0], -1)]), "-1 for a class"),
        (lambda: Items([(COLOUR[0], "cat")]), "'cat' for a class"),
        (
            lambda: torch.utils.data.DataLoader(TensorDataset(COLOUR)),
            "is of type DataLoader: give a path, a uint8 tensor",
        ),
        (lambda: iter(COLOUR), "give a path, a uint8 tensor or array"),
        (lambda: 3, "samples is of type int"),
        (lambda: table(pil(COLOUR)).with_format("torch"), "has the format 'torch'"),
        (lambda: table(pil(COLOUR)).to_iterable_dataset(), "Hugging Face.s type IterableDataset: give one"),
        (lambda: table(pil(COLOUR)).rename_column("image", "picture").remove_columns("picture"), "0 rows"),
        (lambda: table(pil(COLOUR), coarse=[1] * 6, fine=[2] * 6), "columns 'image', 'coarse', 'fine' of images and"),
        (lambda: table([each.convert("RGBA") for each in pil(COLOUR[:, :1].expand(-1, 3, -1, -1))]), None),
    ],
)
def test_what_would_have_to_be_guessed_is_refused(given: Callable[[], Any], expected: str | None) -> None:
    """Alpha that hides nothing is no alpha in a file, so in a table of files as well."""
    if expected is None:
        assert load_in_memory(given(), "samples").shape == (3, 8, 8)
        return
    with pytest.raises(UserError, match=expected) as caught:
        load_in_memory(given(), "samples")
    assert str(caught.value).startswith("samples ")
    assert "\n" not in str(caught.value)
