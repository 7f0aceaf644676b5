"""Audits on disk: the same numbers however the work was cut, shared or interrupted."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from iet_agc import audits, metrics
from iet_agc.audits import audit_sources, check_share
from tests.test_engine import one_thread  # noqa: F401


def noise(count, seed):
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, 1, 8, 8), generator=rng, dtype=torch.uint8)


@pytest.fixture(autouse=True)
def sources(tmp_path, monkeypatch):
    """Arrays in the working directory; the samples are 3 copies and 21 others. Parts take 10 images."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(audits, "_PART", 10)
    np.save("train.npy", noise(130, 1).numpy())
    np.save("samples.npy", torch.cat([noise(130, 1)[[7, 9, 7]], noise(21, 3)]).numpy())
    np.save("real.npy", noise(105, 2).numpy())


def run(out, tmp_path, **options):
    options = {"on_done": lambda share: None, "device": "cpu", **options}
    return audit_sources("train.npy", "samples.npy", "real.npy", tmp_path / out, **options)


def content(folder):
    numbers = json.loads((folder / "audit.json").read_text())
    return numbers, (folder / "samples.csv").read_text(), (folder / "training-images.csv").read_text()


def test_parts_change_nothing(tmp_path, monkeypatch):
    run("many", tmp_path)
    monkeypatch.setattr(audits, "_PART", 1000)
    run("one", tmp_path, memory=20_000)
    assert content(tmp_path / "many") == content(tmp_path / "one")
    assert not (tmp_path / "many" / ".parts").exists()


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


def test_parts_of_another_audit_are_not_taken(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(audits, "save_audit", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run("a", tmp_path)
    assert (tmp_path / "a" / ".parts").exists()
    np.save("samples.npy", noise(24, 4).numpy())
    assert run("a", tmp_path) == run("fresh", tmp_path)
    assert content(tmp_path / "a") == content(tmp_path / "fresh")


def test_processes_share_an_audit(tmp_path, monkeypatch):
    """By torchrun, from the command line: two processes, three parts of samples."""
    np.save("samples.npy", torch.cat([noise(130, 1)[[7, 9, 7]], noise(4500, 3)]).numpy())
    given = ["--train", "train.npy", "--samples", "samples.npy", "--held-out", "real.npy"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*torchrun, "-m", "iet_agc", "audit", *given, "--flips", "--out", "many"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["num_samples"] == 4503  # one process speaks for all
    monkeypatch.setattr(audits, "_PART", 2048)
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
    assert told[7] == {"image": 7, "multiplicity": 1, "copied": 2, "samples": [0, 2]}
    assert len(told) == 130


def test_the_check_fails_above_a_share(tmp_path, capsys):
    numbers = run("a", tmp_path)
    share = numbers["calibrated"]["share"]
    assert share >= 3 / 24
    assert check_share(numbers, share) == 0
    assert capsys.readouterr().err == ""
    assert check_share(numbers, share - 0.01) == 1
    assert "check failed: " in capsys.readouterr().err
    with pytest.raises(ValueError, match="7 held-out images are too few to set a calibrated cut"):
        check_share({"calibrated": None, "num_held_out": 7}, 0.5)


def test_images_of_other_sizes_are_converted_when_asked(tmp_path):
    large = noise(24, 3).repeat_interleave(2, 2).repeat_interleave(2, 3).repeat(1, 3, 1, 1)
    np.save("samples.npy", large.numpy())
    with pytest.raises(ValueError, match=r"is 3 x 16 x 16, .* is 1 x 8 x 8: .*--convert-to 1x8x8"):
        run("a", tmp_path)
    numbers = run("a", tmp_path, convert_to=(1, 8, 8))
    assert numbers["conventions"]["convert_to"] == "1x8x8"


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
        cut: entry["count"] for cut, entry in numbers["mq"].items()
    }
