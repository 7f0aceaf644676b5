"""Sample sets: the seed alone makes the image, and a kill loses no finished part."""

import json
import re

import numpy as np
import pytest
import torch

from iet_agc.diffusion.process import make_scheduler
from iet_agc.diffusion.unet import build_unet, save_pipeline
from iet_agc.sampling import sample_set
from iet_agc.sampling.sample_set import load_samples
from tests.drawing import draw_samples
from tests.processes import in_processes


def draw(pipeline, out, seeds=range(10), **options):
    return load_samples(draw_samples(pipeline, seeds, out, steps=3, **options))


def test_an_image_depends_on_its_seed_only(pipeline, tmp_path):
    whole, seeds = draw(pipeline, tmp_path / "a")
    assert seeds == list(range(10))
    small = draw(pipeline, tmp_path / "b")[0]
    late = draw(pipeline, tmp_path / "c", range(4, 10))[0]
    assert torch.equal(small.images, whole.images)
    assert torch.equal(late.images, whole.images[4:])
    assert len({image.numpy().tobytes() for image in whole.images}) == 10


@pytest.mark.parametrize("count", [2, 3])
def test_many_processes_draw_the_same_set(pipeline, tmp_path, count, small_parts):
    in_processes(count, lambda: draw_samples(pipeline, range(10), tmp_path / "many", steps=3))
    assert torch.equal(load_samples(tmp_path / "many")[0].images, draw(pipeline, tmp_path / "one")[0].images)


def test_png_and_npz_hold_the_same_pixels(pipeline, tmp_path):
    array, files = draw(pipeline, tmp_path / "npz")[0], draw(pipeline, tmp_path / "png", file_format="png")[0]
    assert torch.equal(array.images, files.images)
    assert sorted(file.name for file in (tmp_path / "png" / "images").iterdir())[3] == "0000000003.png"
    assert (tmp_path / "png" / "grid.png").exists()
    with np.load(tmp_path / "npz" / "samples.npz", allow_pickle=False) as content:
        assert content["seeds"].tolist() == list(range(10))


def test_a_killed_draw_goes_on(pipeline, tmp_path, monkeypatch, small_parts):
    honest, calls = sample_set.sample, []

    def dies_at_the_third(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return honest(*arguments)

    monkeypatch.setattr(sample_set, "sample", dies_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        draw(pipeline, tmp_path / "a")
    with pytest.raises(ValueError, match="unfinished sample set: run the same 'iet-agc sample' again"):
        load_samples(tmp_path / "a")
    resumed = draw(pipeline, tmp_path / "a")[0]
    assert len(calls) == 3 + 3
    assert torch.equal(resumed.images, draw(pipeline, tmp_path / "b")[0].images)


def test_progress_adds_up_to_the_number_of_images(pipeline, tmp_path):
    done = []
    draw(pipeline, tmp_path / "a", on_images=done.append)
    assert sum(done) == pytest.approx(10)
    done.clear()
    draw(pipeline, tmp_path / "a", on_images=done.append)
    assert done == [10]


def test_another_set_or_other_things_are_refused_and_left(pipeline, tmp_path):
    draw(pipeline, tmp_path / "a")
    with pytest.raises(ValueError, match=r"holds another sample set \(num is 10, not 11\)"):
        draw(pipeline, tmp_path / "a", range(11))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty and holds no sample set"):
        draw(pipeline, tmp_path / "b")
    assert [entry.name for entry in (tmp_path / "b").iterdir()] == ["notes.txt"]


def test_what_drew_it_is_written_down(pipeline, tmp_path):
    draw(pipeline, tmp_path / "a")
    about = json.loads((tmp_path / "a" / "samples.json").read_text())
    assert about["scheduler"]["steps_offset"] == 1
    assert (about["steps"], about["sampler"], about["num"]) == (3, "DDIM, eta 0", 10)


def test_another_kind_of_device_does_not_go_on_with_a_set(pipeline, tmp_path, monkeypatch, small_parts):
    """Its rows round differently, and its parts would be of other seeds."""
    monkeypatch.setattr(sample_set, "_assemble", lambda *arguments: None)
    draw_samples(pipeline, range(10), tmp_path / "a", steps=3)
    monkeypatch.setattr(sample_set, "rows_at_a_time", lambda shape, device: 4)
    with pytest.raises(ValueError, match=r"another sample set \(rows is 2, not 4\)"):
        draw_samples(pipeline, range(10), tmp_path / "a", steps=3)


def test_a_set_belongs_to_the_weights_that_drew_it(tmp_path):
    for seed in (0, 1):
        torch.manual_seed(seed)
        save_pipeline(build_unet(8, 1, 8, (1, 2), 1, (), 0.0, 4), make_scheduler(), tmp_path / "pipeline")
        if seed == 0:
            draw(tmp_path / "pipeline", tmp_path / "a")
    with pytest.raises(ValueError, match=r"another sample set \(of other weights_sha256\)"):
        draw(tmp_path / "pipeline", tmp_path / "a")


@pytest.mark.parametrize("content", ["", "{}", "[1]", "3", '{"format": "iet-agc samples", "version": 1}'])
def test_a_damaged_description_is_named(pipeline, tmp_path, content):
    draw(pipeline, tmp_path / "a")
    (tmp_path / "a" / "samples.json").write_text(content)
    with pytest.raises(ValueError, match=r"samples\.json is damaged, .*: sample again"):
        load_samples(tmp_path / "a")
    with pytest.raises(ValueError, match=r"samples\.json is damaged, .*: remove |holds another sample set"):
        draw(pipeline, tmp_path / "a")


def test_a_set_of_another_version_or_length_is_refused(pipeline, tmp_path):
    draw(pipeline, tmp_path / "a")
    file = tmp_path / "a" / "samples.json"
    about = json.loads(file.read_text())
    file.write_text(json.dumps(about | {"version": 2}))
    with pytest.raises(ValueError, match="'iet-agc samples' version 2, not 'iet-agc samples' version 1"):
        load_samples(tmp_path / "a")
    for content, said in (
        (about | {"num": 11}, r"samples\.json is not as it was written: sample again"),
        (about | {"num": 11, "seal": None}, r"holds 10 images, its samples\.json says 11"),
    ):
        file.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=said):
            load_samples(tmp_path / "a")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("turned_down", 3),
        ("turned_down", ["3"]),
        ("num", 0),
        ("num", "10"),
        ("first_seed", -1),
        ("first_seed", True),
        ("labels", [0]),
        ("labels", {"0": 0}),
        ("prompts", "a dog"),
        ("file_format", "gif"),
    ],
)
def test_a_note_that_cannot_be_is_named(pipeline, tmp_path, name, value):
    first, _ = draw(pipeline, tmp_path / "a")
    file = tmp_path / "a" / "samples.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {name: value}))
    with pytest.raises(ValueError, match=re.escape(f"samples.json is damaged, {name} is {str(value)!r}: sample")):
        load_samples(tmp_path / "a")
    if name in ("turned_down", "labels", "prompts"):  # what it was drawn from is as it was: it is drawn again
        assert torch.equal(draw(pipeline, tmp_path / "a")[0].images, first.images)
    else:
        with pytest.raises(ValueError, match=rf"holds another sample set \({name} is "):
            draw(pipeline, tmp_path / "a")


@pytest.mark.parametrize("file_format", ["npz", "png"])
def test_a_flipped_bit_is_refused_and_mended_by_the_same_command(pipeline, tmp_path, capsys, file_format):
    first, _ = draw(pipeline, tmp_path / "a", file_format=file_format)
    before = {file: file.read_bytes() for file in (tmp_path / "a").rglob("*") if file.is_file()}
    images = {"npz": "samples.npz", "png": "images/0000000004.png"}[file_format]
    for name in (images, "grid.png", "samples.json"):
        file = tmp_path / "a" / name
        flipped = bytearray(before[file])
        flipped[len(flipped) // 2] ^= 1
        file.write_bytes(flipped)
        with pytest.raises(ValueError, match=rf"{name} is (not as it was written|damaged, .*): sample again"):
            load_samples(tmp_path / "a")
        if name == "samples.json":
            continue
        assert torch.equal(draw(pipeline, tmp_path / "a", file_format=file_format)[0].images, first.images)
        assert f"{name} is not as it was written: the sample set is made again" in capsys.readouterr().err
        assert {file: file.read_bytes() for file in (tmp_path / "a").rglob("*") if file.is_file()} == before


def test_a_set_without_digests_is_taken_with_a_warning(pipeline, tmp_path, capsys):
    draw(pipeline, tmp_path / "a")
    file = tmp_path / "a" / "samples.json"
    about = json.loads(file.read_text())
    del about["seal"]
    file.write_text(json.dumps(about))
    assert len(load_samples(tmp_path / "a")[0]) == 10
    assert "samples.json has no digests, so whether" in capsys.readouterr().err
    (tmp_path / "a" / "samples.npz").unlink()  # as a set that an earlier version had only begun
    assert len(draw(pipeline, tmp_path / "a")[0]) == 10
    assert "samples.json has no digests: the sample set is made again" in capsys.readouterr().err
