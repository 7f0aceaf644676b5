"""A folder of images to a file of settings: what is chosen for what, what is refused, and that training follows."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from iet_agc.cli import summary
from iet_agc.config.first_settings import (
    Found,
    Machine,
    as_settings,
    as_toml,
    choose_size,
    first_settings,
    num_held_out,
)
from iet_agc.config.overrides import override
from iet_agc.config.presets import load_preset
from iet_agc.config.settings import Settings
from iet_agc.data.mending import Mending
from iet_agc.data.survey import captions_of, look_at, num_classes, survey_folder
from iet_agc.diffusion.unet import build_unet
from iet_agc.runtime.errors import UserError
from iet_agc.training.initialization import initial_weights
from tests.commands import call
from tests.photographs import album, photograph, turned, with_copies

CPU, GPU = Machine("cpu", 8 * 2**30), Machine("cuda", 80 * 2**30)


def chosen(machine: Machine = CPU, method: Any = "iet-agc", **found: Any) -> Settings:
    given: dict[str, Any] = {"root": "/photos", "images": 600, "channels": 3, "size": 32} | found
    return as_settings(first_settings(Found(**given), machine, method), "folder")


# What is chosen ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sides", "equal", "device", "wanted", "size"),
    [
        ([480] * 9, False, "cpu", None, 32),
        ([480] * 9, False, "cuda", None, 128),
        ([70, 70, 500], False, "cuda", None, 64),  # half of them are smaller than 128
        ([40] * 3, True, "cpu", None, 32),
        ([28] * 3, True, "cpu", None, 28),  # as they are
        ([28] * 3, False, "cpu", None, 16),
        ([8, 9, 10], False, "cpu", None, 8),
        ([30] * 3, True, "cpu", None, 16),  # halves once only
        ([480] * 9, False, "cpu", 256, 256),
        ([10] * 3, True, "cpu", 48, 48),
    ],
)
def test_the_size_follows_from_images_and_device(
    sides: list[int], equal: bool, device: Any, wanted: int | None, size: int
) -> None:
    assert choose_size(sides, equal, device, wanted) == size


@pytest.mark.parametrize(("wanted", "sides"), [(4, [99]), (50, [99]), (512, [999]), (None, [7, 7, 99])])
def test_sizes_that_no_network_takes_are_refused(wanted: int | None, sides: list[int]) -> None:
    with pytest.raises(UserError, match=r"multiple of 8|training needs 8"):
        choose_size(sides, False, "cpu", wanted)


@pytest.mark.parametrize("size", [8, 12, 16, 24, 28, 32, 40, 48, 64, 96, 128, 192, 248, 256])
@pytest.mark.parametrize("machine", [CPU, GPU], ids=["cpu", "cuda"])
def test_the_network_fits_every_size(size: int, machine: Machine) -> None:
    model = chosen(machine, size=size).model
    with torch.device("meta"):
        built = build_unet(size, 3, **model.architecture())
    assert sum(each.numel() for each in built.parameters()) > 0
    assert bool(model.attention) == (size not in (8, 12, 16, 24, 248))  # 248 halves to 31


@pytest.mark.parametrize(
    ("images", "method", "members", "rounds"),
    [
        (8, "iet-agc", 1, 1),
        (60, "iet-agc", 2, 10),
        (600, "iet-agc", 2, 10),
        (2000, "iet-agc", 4, 10),
        (50_000, "iet-agc", 10, 10),
        (600, "iet", 2, 10),
        (600, "agc", 1, 1),
        (600, "default", 1, 1),
    ],
)
def test_members_and_rounds_follow_from_the_number_of_images(
    images: int, method: str, members: int, rounds: int
) -> None:
    settings = chosen(images=images, method=method)
    assert (settings.method.members, settings.method.rounds) == (members, rounds)
    assert settings.method.skip_below == {"agc": 0.8, "iet-agc": 0.5}.get(method, 0)


@pytest.mark.parametrize(("images", "epochs"), [(100, 1000), (200, 1000), (600, 416), (2000, 111), (50_000, 50)])
def test_images_seen_follow_from_the_number_of_images_and_are_the_same_of_every_method(
    images: int, epochs: int
) -> None:
    for method in ("iet-agc", "iet", "agc", "default"):
        settings = chosen(images=images, method=method)
        seen = settings.total_steps * settings.train.batch_size / (settings.data.num_train or images)
        assert seen == pytest.approx(epochs, rel=0.1)


@pytest.mark.parametrize("method", ["iet-agc", "default"])
def test_a_run_looks_for_copies_about_ten_times_and_stops_where_it_finds_them(method: str) -> None:
    for images in (60, 600, 5000):
        settings = chosen(images=images, method=method)
        steps = settings.method.rounds * settings.train.steps  # of a member
        assert 9 <= steps / settings.run.watch_every <= 10, images
        assert settings.train.steps % settings.run.watch_every == 0 or settings.method.rounds == 1
        assert settings.run.stop_when_copying


@pytest.mark.parametrize(("gib", "size", "batch"), [(8, 32, 32), (8, 256, 4), (16, 256, 8), (1, 256, 1), (0.5, 64, 4)])
def test_the_batch_fits_the_memory(gib: float, size: int, batch: int) -> None:
    assert chosen(Machine("cpu", int(gib * 2**30)), size=size).train.batch_size == batch


def test_of_many_images_more_are_in_a_batch() -> None:
    assert chosen(images=4000).train.batch_size == 32  # 3,600 of them are trained on
    assert chosen(images=5000).train.batch_size == 64


def test_small_sets_get_many_steps_and_an_average_that_forgets() -> None:
    for images in (460, 1200, 2000, 5000, 25_000):
        settings = chosen(images=images)
        steps = settings.method.rounds * settings.train.steps
        assert steps > 700, images
        assert settings.train.ema_decay**steps < 0.05
        assert settings.sample.weights == "ema"


def test_the_batch_is_no_larger_than_a_shard() -> None:
    assert chosen(images=60).train.batch_size == 16


@pytest.mark.parametrize(("images", "held_out"), [(10, 2), (100, 20), (359, 71), (360, 120), (600, 120), (5000, 500)])
def test_images_are_held_out(images: int, held_out: int) -> None:
    assert num_held_out(images) == held_out
    assert chosen(images=images).data.num_train == images - held_out


def test_a_folder_of_held_out_images_leaves_all_others_for_training() -> None:
    data = chosen(held_out="/unseen").data.model_dump()
    assert (data["held_out"], data["num_train"]) == ("/unseen", None)


def test_what_was_found_stands_in_the_file_and_what_is_only_proposed_is_a_comment() -> None:
    found = Found(
        root="/my photos",
        images=600,
        channels=1,
        size=28,
        as_they_are=True,
        deduplicate="near",
        mending=[("orient", True, "3 files are turned")],
        captions="txt",
        classes=3,
    )
    choices = first_settings(found, CPU)
    text = as_toml(choices, ["a heading"])
    content = tomllib.loads(text)
    assert text.startswith("# a heading\n")
    assert content["data"] == {
        "name": "folder",
        "root": "/my photos",
        "orient": True,
        "deduplicate": "near",
        "num_train": 480,
    }
    assert "orient = true                # 3 files are turned\n" in text
    for proposed in ("# flips = true", '# captions = "txt"', '# classes = "folders"'):
        assert f"\n{proposed} " in text
    assert "model.classes = 3" in text


def test_a_file_says_what_the_choices_are(tmp_path: Path) -> None:
    choices = first_settings(Found("/photos", 600, 3, 64), GPU)
    (tmp_path / "folder.toml").write_text(as_toml(choices, []), encoding="utf-8")
    assert load_preset(str(tmp_path / "folder.toml")) == as_settings(choices, "folder")


def test_too_few_images_and_unknown_methods_are_refused() -> None:
    with pytest.raises(UserError, match="/photos holds 7 images that differ and can be used, and training needs 8"):
        chosen(images=7)
    with pytest.raises(UserError, match="method 'sgd': give one of agc, iet-agc, iet, default"):
        chosen(method="sgd")


@pytest.mark.parametrize("side", [32, 64, 128])
def test_presets_for_a_folder_take_sizes_that_halve(side: int) -> None:
    settings = override(load_preset("folder-iet-agc"), {"data.convert_to": f"3x{side}x{side}"})
    assert settings.model == load_preset("folder-default").model
    with torch.device("meta"):
        assert build_unet(side, 3, **settings.model.architecture()).config["sample_size"] == side


@pytest.mark.parametrize(("side", "reason"), [(28, "cannot be halved 3 times"), (256, "no level has that height")])
def test_where_a_network_does_not_fit_a_folder_it_is_said_what_would(side: int, reason: str) -> None:
    with pytest.raises(UserError, match=f"{reason}.*; 'iet-agc init FOLDER' writes settings with a network that fits"):
        initial_weights(load_preset("folder-iet-agc"), (3, side, side))


def test_presets_for_a_folder_see_as_many_images() -> None:
    presets = [load_preset(f"folder-{method}") for method in ("default", "agc", "iet-agc")]
    assert [each.total_steps * each.train.batch_size for each in presets] == [204_800] * 3
    assert [each.method.skip_below for each in presets] == [0, 0.8, 0.5]


def test_a_file_starts_from_a_preset(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('extends = "folder-iet-agc"\n[data]\nroot = "photos"\nnum_train = 900\n', encoding="utf-8")
    settings = load_preset(str(file))
    assert (settings.data.root, settings.data.num_train, settings.method.members) == ("photos", 900, 4)
    assert settings.description == "As folder-iet-agc, but data.root photos, data.num_train 900"


# What a folder holds ----------------------------------------------------------------------------------------


def test_a_folder_is_looked_at(tmp_path: Path) -> None:
    folder, unseen = with_copies(tmp_path / "photos"), album(tmp_path / "unseen", 3, first=50)
    turned(folder / "turned.jpg", 30, 20, 60)
    photograph(31, mode="L").save(folder / "grey.png")
    photograph(4).save(unseen / "leaked.jpg", quality=90)
    found = survey_folder(folder, look_at(folder, lambda sizes: (3, 16, 16), unseen, Mending(orient=True)))
    assert (len(found.images), found.images.shape) == (17, (3, 16, 16))
    assert found.formats == {"png": 15, "jpg": 2}
    assert found.sizes.count((3, 20, 60)) == 1  # as viewers turn it
    assert found.sizes.count((1, 40, 40)) == 1
    assert (found.copies.groups, found.copies.largest) == (3, 2)
    assert (found.copies.redundant, found.copies.redundant_exact, found.copies.deduplicate) == (3, 1, "near")
    assert found.held_out is not None
    assert (len(found.held_out), found.held_out_copies) == (4, 1)


def test_equal_images_alone_ask_for_no_more(tmp_path: Path) -> None:
    folder = album(tmp_path / "photos")
    assert survey_folder(folder, look_at(folder, lambda sizes: (3, 16, 16))).copies.deduplicate is None
    photograph(0).save(folder / "b.png")
    assert survey_folder(folder, look_at(folder, lambda sizes: (3, 16, 16))).copies.deduplicate == "exact"


def test_captions_are_found(tmp_path: Path) -> None:
    folder = album(tmp_path / "photos", 2)
    files = ["000.png", "001.png"]
    assert captions_of(folder, files) is None
    (folder / "000.txt").write_text("one")
    assert captions_of(folder, files) is None
    (folder / "001.txt").write_text("another")
    assert captions_of(folder, files) == "txt"
    (folder / "words.json").write_text("{}")
    assert captions_of(folder, files) == "words.json"
    (folder / "metadata.jsonl").write_text("")
    assert captions_of(folder, files) == "metadata.jsonl"


def test_classes_are_subfolders_that_hold_all_images() -> None:
    assert num_classes(["cat/1.png", "dog/1.png", "dog/old/2.png"]) == 2
    assert num_classes(["cat/1.png", "2.png"]) == 0


# The verb ---------------------------------------------------------------------------------------------------


def test_train_follows_without_a_guess(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The four commands on a tiny folder, with copies and a file that is to be turned."""
    monkeypatch.chdir(tmp_path)
    folder = with_copies(tmp_path / "photos", 20)
    turned(folder / "turned.jpg", 30)
    status, _, err = call(capsys, "init", "photos")
    assert (status, "--orient" in err, "all are listed in" in err) == (2, True, True)
    assert not Path("folder.toml").exists()
    status, out, _ = call(capsys, "init", "photos", "--orient", "--size", 8, "--device", "cpu")
    result = json.loads(out)
    assert (status, result["settings"], result["training_images"], result["held_out_images"]) == (
        0,
        "folder.toml",
        17,
        4,
    )
    assert result["mending"] == {"oriented": 1}
    assert result["copies"]["redundant"] == 3
    assert min(result[key] for key in ("seconds_per_step", "train_seconds", "sample_seconds", "memory")) > 0
    assert len(result["warnings"]) == 1
    assert "4 held-out images are too few" in result["warnings"][0]
    text = Path("folder.toml").read_text(encoding="utf-8")
    assert call(capsys, "init", "photos", "--orient", "--size", 8, "--device", "cpu")[0] == 0  # the same is no other
    status, _, err = call(capsys, "init", "photos", "--orient", "--size", 16, "--device", "cpu")
    assert (status, "folder.toml is there and says something else: choose another output" in err) == (2, True)
    assert Path("folder.toml").read_text(encoding="utf-8") == text

    short = ["--method.rounds", 1, "--train.steps", 2, "--run.preview_images", 0, "--run.device", "cpu"]
    status, out, _ = call(capsys, "train", "folder.toml", "--out", "run", *short)
    assert (status, json.loads(out)["training_images"], json.loads(out)["held_out_images"]) == (0, 17, 4)
    assert json.loads(out)["mending"] == {"left out: duplicate": 3, "oriented": 1}
    assert call(capsys, "sample", "run", "--num", 12, "--steps", 2, "--out", "run/samples")[0] == 0
    words = ["--train", "run", "--samples", "run/samples", "--held-out", "run", "--out", "run/audit"]
    status, out, _ = call(capsys, "audit", *words, "--extractor", "pixels")
    assert (status, json.loads(out)["num_train"], json.loads(out)["num_held_out"]) == (0, 17, 4)
    assert call(capsys, "report", "run/audit")[0] == 0


def test_held_out_images_of_another_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, unseen = album(tmp_path / "photos"), album(tmp_path / "unseen", 3, first=50)
    photograph(4).save(unseen / "leaked.png")
    file = tmp_path / "new" / "folder.toml"
    given = ["--held-out", unseen, "--size", 8, "--device", "cpu", "--method", "default", "--out", file]
    status, out, _ = call(capsys, "init", folder, *given)
    result = json.loads(out)
    assert (status, result["training_images"], result["held_out_images"], result["held_out_copies"]) == (0, 12, 4, 1)
    data = load_preset(str(file)).data.model_dump()
    assert (data["root"], data["held_out"], data["num_train"]) == (str(folder), str(unseen), None)
    assert "1 held-out images are copies" in " ".join(result["warnings"])


def damaged(folder: Path) -> None:
    for number in range(3):
        (folder / f"{number}.jpg").write_text("not found")


BAD: dict[str, tuple[Any, str]] = {
    "empty": (lambda folder: None, "photos holds no images (.apng, "),
    "one image": (lambda folder: photograph(0).save(folder / "a.png"), "holds 1 images that differ"),
    "the same ten times": (
        lambda folder: [photograph(0).save(folder / f"{number}.png") for number in range(10)],
        "holds 1 images that differ",
    ),
    "only damaged files": (damaged, "3 of 3 files cannot be used"),
    "tiny images": (
        lambda folder: [photograph(number, 7, 30).save(folder / f"{number}.png") for number in range(10)],
        "a side of at most 7 pixels",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_folders_that_cannot_be_trained_on_are_refused(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, reason = BAD[case]
    folder = tmp_path / "photos"
    folder.mkdir()
    make(folder)
    status, out, err = call(capsys, "init", folder, "--out", tmp_path / "folder.toml", "--on-bad", "skip")
    assert (status, out, reason in err, len(err.splitlines())) == (2, "", True, 1), err
    assert not (tmp_path / "folder.toml").exists()


def test_places_that_cannot_be_are_refused_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = album(tmp_path / "photos")
    Image.new("L", (8, 8)).save(tmp_path / "one.png")
    for words, reason in (
        ([tmp_path / "nowhere"], "nowhere is not there"),
        ([tmp_path / "one.png"], "one.png is no folder: give the folder that holds the images"),
        ([folder, "--held-out", tmp_path / "nowhere"], "nowhere is not there"),
        ([folder, "--out", tmp_path / "settings.txt"], "settings are read from files named .toml"),
        ([folder, "--size", 50], "size 50: give a multiple of 8 from 8 to 256 (--size)"),
        ([folder, "--held-out", folder], "lie in each other"),
    ):
        status, out, err = call(capsys, "init", *words, *([] if "--out" in words else ["--out", tmp_path / "a.toml"]))
        assert (status, out, reason in err) == (2, "", True), err
    assert [file.name for file in tmp_path.iterdir() if file.suffix == ".toml"] == []


def test_grey_and_colour_together_are_colours(tmp_path: Path) -> None:
    folder = album(tmp_path / "photos", 3)
    assert look_at(folder, lambda sizes: (max(size[0] for size in sizes), 8, 8)).images.shape[0] == 3
    for number in range(3):
        photograph(number, mode="L").save(folder / f"{number:03d}.png")
    assert look_at(folder, lambda sizes: (max(size[0] for size in sizes), 8, 8)).images.shape[0] == 1


def test_lines_for_people() -> None:
    result: Any = {
        "settings": "my folder.toml",
        "images": 573,
        "formats": {"jpg": 297, "png": 276},
        "grey": 200,
        "width": [31, 299],
        "height": [32, 280],
        "enlarged": 42,
        "mending": {"oriented": 22},
        "copies": {"looked_for": "near", "groups": 36, "largest": 4, "redundant": 45, "redundant_exact": 8},
        "captions": None,
        "classes": 0,
        "training_images": 408,
        "held_out_images": 120,
        "shape": [3, 32, 32],
        "members": 4,
        "rounds": 10,
        "steps": 2560,
        "batch_size": 64,
        "device": "cpu",
        "train_seconds": 4000.0,
        "samples": 1024,
        "sample_seconds": 120.0,
        "memory": 2 * 2**30,
        "warnings": ["Few"],
    }
    assert summary.init(result, 100) == [
        "573 images looked at, and settings written to my folder.toml",
        "  files             297 jpg, 276 png; 200 grey",
        "  size              31 x 32 to 299 x 280, brought to 3x32x32",
        "  enlarged          42 that are smaller",
        "  mended            22 oriented",
        "  copies            36 groups of equal or near copies, the largest of 4: 45 left out",
        "  training images   408, and 120 held out",
        "  training          4 members, 10 rounds, 2,560 steps of 64 images",
        "  expected          1 h 6 min of training, 2 min 0 s for 1,024 samples, 2.0 GiB, on this cpu as busy as it is",
        "warning: Few",
        "next: iet-agc train 'my folder.toml' --out run",
    ]
