"""`iet-agc curve`, and the watch on the page of an audit: of a tiny run on digits."""

import csv
import json
import shutil

import pytest

from iet_agc.auditing.compute import audit
from iet_agc.auditing.curve import draw_curve
from iet_agc.auditing.sources import load_part
from iet_agc.config.overrides import override
from iet_agc.config.presets import load_preset
from iet_agc.metrics.curve import Point, recommend
from iet_agc.reporting.audit_page import render
from iet_agc.reporting.reader import read_audit
from iet_agc.runtime.errors import UserError
from iet_agc.sampling.sample_set import load_samples, sample_run
from iet_agc.training.loop import start
from iet_agc.training.watched import read_points
from tests.audits_on_disk import audit_on_disk


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    changes = {"train.steps": "6", "sample.num": "20", "sample.steps": "2", "run.threads": "1", "run.watch_every": "3"}
    changes |= {"run.watch_images": "8", "run.watch_denoising_steps": "2", "run.keep_watched": "true"}
    out = tmp_path_factory.mktemp("watched") / "run"
    summary = start(override(load_preset("digits-default"), changes), out)
    assert summary["recommendation"] == recommend(read_points(out)).model_dump(mode="json")
    return out


def test_the_points_of_the_training_are_drawn(tmp_path, run):
    found = draw_curve(run, tmp_path / "curve")
    points = read_points(run)
    assert found["points"] == 2
    assert found["recommendation"] == recommend(points).model_dump(mode="json")
    content = json.loads((tmp_path / "curve" / "curve.json").read_text())
    assert [Point.model_validate_json(json.dumps(each)) for each in content["points"]] == points
    rows = list(csv.DictReader((tmp_path / "curve" / "curve.csv").open()))
    assert [int(row["step"]) for row in rows] == [3, 6]
    assert float(rows[1]["distance"]) == points[1].distance.value
    page = (tmp_path / "curve" / "curve.html").read_text()
    assert recommend(points).sentence in page
    assert page.count("<svg") == 2
    draw_curve(run, tmp_path / "curve")  # in place of the one before


def test_models_that_were_kept_are_measured_as_an_audit_does(tmp_path, run):
    out = tmp_path / "curve"
    found = draw_curve(run, out, 20, 3)
    assert found["measured"] == "measured by 20 images of each model, 3 denoising steps"
    written = json.loads((out / "curve.json").read_text())["points"]
    points = [Point.model_validate_json(json.dumps(each)) for each in written]
    assert [(point.step, point.images_seen, point.copied.total) for point in points] == [(3, 192, 20), (6, 384, 20)]
    assert [point.losses for point in points] == [point.losses for point in read_points(run)]
    samples, _ = load_samples(out / "samples" / "step-000000006")
    numbers = audit(load_part(str(run), "train")[0], samples, load_part(str(run), "held-out")[0]).numbers
    assert points[1].copied == numbers.calibrated
    assert points[1].distance.value == numbers.quality.frechet_held_out
    before = (out / "samples" / "step-000000006" / "samples.json").stat().st_mtime_ns
    draw_curve(run, out, 20, 3)  # draws nothing again
    assert (out / "samples" / "step-000000006" / "samples.json").stat().st_mtime_ns == before


def test_models_alone_are_enough(tmp_path, run):
    copied = tmp_path / "run"
    shutil.copytree(run, copied)
    (copied / "watch.jsonl").unlink()
    with pytest.raises(UserError, match="has no points"):
        draw_curve(copied, tmp_path / "a")
    draw_curve(copied, tmp_path / "b", 4, 2)
    points = json.loads((tmp_path / "b" / "curve.json").read_text())["points"]
    assert [each["losses"] for each in points] == [None, None]


def test_images_need_models_that_were_kept(tmp_path, run):
    copied = tmp_path / "run"
    shutil.copytree(run, copied)
    shutil.rmtree(copied / "watched")
    with pytest.raises(UserError, match=r"kept no models to draw with: train it with run\.keep_watched"):
        draw_curve(copied, tmp_path / "a", 4, 2)


def test_a_folder_of_something_else_is_left_alone(tmp_path, run):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="holds other things than a curve"):
        draw_curve(run, tmp_path)


def test_the_page_of_an_audit_shows_the_watch(tmp_path, run):
    sample_run(run, tmp_path / "samples")
    folder = tmp_path / "audit"
    audit_on_disk(str(run), str(tmp_path / "samples"), str(run), folder, device="cpu")
    assert read_audit("a", folder).watch == read_points(run)
    page = render({"a": folder})
    assert "When it starts to copy" in page
    assert recommend(read_points(run)).sentence in page
    (folder / "watch.json").write_text("[]")
    with pytest.raises(UserError, match="not as it was written"):
        read_audit("a", folder)


def test_points_that_were_changed_after_training_are_refused(tmp_path, run):
    copied = tmp_path / "run"
    shutil.copytree(run, copied)
    sample_run(copied, tmp_path / "samples")
    text = (copied / "watch.jsonl").read_text()
    (copied / "watch.jsonl").write_text(text.replace('"seen":192', '"seen":191'))
    with pytest.raises(UserError, match=r"watch\.jsonl is not as the run left it"):
        audit_on_disk(str(copied), str(tmp_path / "samples"), str(copied), tmp_path / "audit", device="cpu")
