"""One caption for all images of a set that has none, or one by class: what a pipeline is fine-tuned on."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from iet_agc.config.fingerprint import fingerprint
from iet_agc.config.overrides import override
from iet_agc.config.settings import Settings, validate
from iet_agc.data.grids import save_image
from iet_agc.runtime.errors import UserError
from tests.audits_on_disk import audit_on_disk
from tests.image_sets import load_named
from tests.miniature import captioned, save_miniature
from tests.tiny_text_runs import TINY, call

DOG = "a red dog"


@pytest.fixture(scope="module")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return save_miniature(tmp_path_factory.mktemp("miniature") / "pipeline")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Six images in two subfolders, without captions."""
    for number, image in enumerate(captioned(6).images):
        file = tmp_path / "images" / ("cat" if number % 2 else "dog") / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        save_image(image, file)
    return tmp_path / "images"


def trained(
    capsys: pytest.CaptureFixture[str], miniature: Path, pictures: Path, run: Path, *more: str
) -> tuple[object, str]:
    words = ("train", "sd21-laion10k-default", "--out", run, "--init", miniature, "--data.name", "folder")
    status, _, line = call(capsys, *words, "--data.root", pictures, *TINY, *more)
    return status, line


@pytest.mark.parametrize("lora", [(), ("--lora.rank", "2")])
def test_a_folder_without_captions_is_trained_on(
    capsys: pytest.CaptureFixture[str], miniature: Path, pictures: Path, tmp_path: Path, lora: tuple[str, ...]
) -> None:
    """All weights or LoRA; the caption is the prompt of samples, and an audit knows that it covers all images."""
    run, more = tmp_path / "run", ("--data.caption", DOG, "--data.num-train", "4", *lora)
    status, line = trained(capsys, miniature, pictures, run, *more)
    assert status == 0, line
    assert json.loads((run / "captions.json").read_text()) == [[DOG]] * 4
    status, _, line = call(capsys, "sample", run, "--out", run / "samples", "--device", "cpu")
    assert status == 0, line
    assert set(json.loads((run / "samples" / "samples.json").read_text())["prompts"]) == {DOG}
    numbers = audit_on_disk(
        str(run), str(run), str(run), tmp_path / "audit", on_done=lambda share: None, device="cpu",
        extractors=["pixels"],
    )  # fmt: skip
    assert numbers.prompts is not None
    assert (numbers.prompts.num_train_images, numbers.prompts.share) == (4, 1.0)
    status, line = trained(capsys, miniature, pictures, run, "--data.caption", "a blue dog", *more[2:])
    assert status == 2
    assert f"another run (data.caption {DOG} is now a blue dog)" in line


def test_one_caption_by_class(pictures: Path) -> None:
    data: dict[str, Any] = {"classes": "folders", "caption": "a photo of {class} {x}", "num_train": 4}
    for cache in (None, pictures.parent / "cache", pictures.parent / "cache"):
        for part in load_named("folder", pictures, **data, cache=cache):
            said = {file: f"a photo of {file.split('/')[0]} {{x}}" for file in part.files or ()}
            assert part.captions == tuple((text,) for text in said.values())


def test_other_sets_without_captions_take_one() -> None:
    train, held_out = load_named("digits", caption="a digit", num_train=1000, planted_images=2, planted_copies=3)
    assert set(train.captions or ()) == set(held_out.captions or ()) == {("a digit",)}
    assert len(train.captions or ()) == len(train) == 1004


def test_none_is_what_runs_had_before() -> None:
    plain, said = validate({}), validate({"data": {"caption": DOG}})
    assert fingerprint(plain) != fingerprint(said) != fingerprint(validate({"data": {"caption": "a cat"}}))
    before = plain.model_dump(mode="json")
    del before["data"]["caption"]
    assert fingerprint(validate(before)) == fingerprint(plain)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.caption": " "}, "caption is empty: say what the images show"),
        ({"data.caption": "a {class}"}, "caption has {class}, the name of an image's subfolder: set data.classes"),
        (
            {"data.name": "folder", "data.caption": "a", "data.captions": "txt"},
            "caption is one text for all images, and captions has one for each: leave one of them out",
        ),
        ({"data.name": "cifar10", "data.caption": "a {class}"}, "set data.classes to folders"),
    ],
)
def test_captions_in_conflict(changes: dict[str, str], message: str) -> None:
    with pytest.raises(UserError) as error:
        override(Settings(), changes)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_sets_with_captions_and_images_alone_take_none(
    capsys: pytest.CaptureFixture[str], pictures: Path, tmp_path: Path
) -> None:
    for file in pictures.rglob("*.png"):
        file.with_suffix(".txt").write_text("a cat")
    (pictures / "all.json").write_text(json.dumps({file.name: "a cat" for file in pictures.rglob("*.png")}))
    with pytest.raises(UserError, match=r"has captions, so data.caption has no effect on it: leave it out"):
        load_named("laion-10k", pictures, caption=DOG, convert_to="3x16x16")
    status, _, line = call(capsys, "train", "digits-default", "--out", tmp_path / "run", "--data.caption", DOG)
    assert status == 2
    assert "data.caption has no effect on images alone: leave it out, or set model.kind text-to-image" in line
