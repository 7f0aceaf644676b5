"""From Python: the functions do what the verbs do, on images in memory as on paths."""

import importlib.util
import inspect
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import iet_agc
from iet_agc.config.overrides import override
from iet_agc.config.settings import Settings
from iet_agc.data.image_set import ImageSet
from tests.tiny_runs import settings

FUNCTIONS = "train", "sample", "audit", "report", "card", "shards", "average", "pack", "verify", "membership", "attack"
#: 497 real images are held out.
NUM_TRAIN = 1300


@pytest.fixture(scope="module")
def digits() -> torch.Tensor:
    from iet_agc.config.data_settings import DigitsData
    from iet_agc.data.datasets.registry import load_dataset

    train, held_out = load_dataset(DigitsData(num_train=NUM_TRAIN))
    return torch.cat([train.images, held_out.images])


@pytest.fixture(scope="module")
def run(digits: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> iet_agc.Run:
    out = tmp_path_factory.mktemp("api") / "run"
    return iet_agc.train(settings(run__preview_images=4), digits[:NUM_TRAIN], out=out, quiet=True)


@pytest.fixture(scope="module")
def samples(run: iet_agc.Run) -> iet_agc.SampleSet:
    return iet_agc.sample(run, 8, out=run.folder / "samples", steps=2, first_seed=5, quiet=True)


@pytest.fixture(scope="module")
def found(run: iet_agc.Run, samples: iet_agc.SampleSet, digits: torch.Tensor) -> iet_agc.Audit:
    return iet_agc.audit(run, samples, digits[NUM_TRAIN:], out=run.folder / "audit", extractors=["pixels"], quiet=True)


# Names ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_module_takes_the_name_of_a_function(name: str) -> None:
    """Importing iet_agc.audit.anything would put a package in the function's place."""
    assert importlib.util.find_spec(f"iet_agc.{name}") is None
    assert inspect.isfunction(getattr(iet_agc, name))


def test_functions_and_packages_are_there_in_any_order() -> None:
    import iet_agc.auditing.run
    from iet_agc.auditing import verdict

    assert inspect.isfunction(iet_agc.audit)
    assert inspect.ismodule(iet_agc.auditing.run)
    assert inspect.ismodule(verdict)
    assert iet_agc.audit is iet_agc.audit


# A run, its samples and its audit -----------------------------------------------------------------------------


def test_a_run_on_images_in_memory_says_so(run: iet_agc.Run) -> None:
    assert "given from Python: a tensor of 1300 images" in run.settings.description
    assert run.images is not None
    assert (run.folder / "raw" / "model_index.json").is_file()


def test_samples_are_those_of_the_seeds(samples: iet_agc.SampleSet) -> None:
    assert len(samples) == 8
    assert samples.seeds == [*range(5, 13)]
    assert samples.images.shape == (8, 1, 8, 8)


def test_an_audit_in_memory_has_the_numbers_of_one_on_disk(
    found: iet_agc.Audit, samples: iet_agc.SampleSet, digits: torch.Tensor, tmp_path: Path
) -> None:
    train, real = tmp_path / "train.npy", tmp_path / "real.npz"
    np.save(train, digits[:NUM_TRAIN].numpy())
    np.savez(real, images=digits[NUM_TRAIN:].numpy())
    again = iet_agc.audit(train, samples, real, out=tmp_path / "audit", extractors=["pixels"], quiet=True)
    theirs, ours = (each.record.model_dump(exclude={"names"}) for each in (again, found))
    assert ours == theirs
    assert found.record.names is not None
    assert found.record.names.held_out == "a tensor of 497 images"
    assert (again.folder / "samples.csv").read_bytes() == (found.folder / "samples.csv").read_bytes()


def test_losses_are_compared_in_memory_as_on_disk(run: iet_agc.Run, digits: torch.Tensor, tmp_path: Path) -> None:
    found = iet_agc.membership(run, held_out=digits[NUM_TRAIN:], out=tmp_path / "m", num=40, draws=4, quiet=True)
    assert (found.record.num_train, found.record.num_held_out, found.record.draws) == (40, 40, 4)
    np.save(tmp_path / "train.npy", digits[:NUM_TRAIN].numpy())
    np.save(tmp_path / "real.npy", digits[NUM_TRAIN:].numpy())
    parts = tmp_path / "train.npy", tmp_path / "real.npy"
    again = iet_agc.membership(run.folder, *parts, out=tmp_path / "again", num=40, draws=4, quiet=True)
    assert again.record == found.record
    table = found.to_pandas()
    assert len(table) == 80
    assert table["score"].is_monotonic_decreasing
    assert "area under the curve" in found._repr_html_()
    with pytest.raises(iet_agc.UserError, match="other held-out images"):
        iet_agc.membership(run, held_out=digits[-60:], out=found, num=40, draws=4, quiet=True)


def test_an_attack_in_memory_has_the_numbers_of_one_on_disk(
    run: iet_agc.Run, digits: torch.Tensor, tmp_path: Path
) -> None:
    found = iet_agc.attack(run, held_out=digits[NUM_TRAIN:], out=tmp_path / "a", budget=20, steps=1, quiet=True)
    np.save(tmp_path / "train.npy", digits[:NUM_TRAIN].numpy())
    np.save(tmp_path / "real.npy", digits[NUM_TRAIN:].numpy())
    parts = tmp_path / "train.npy", tmp_path / "real.npy"
    again = iet_agc.attack(run.folder, *parts, out=tmp_path / "again", budget=20, steps=1, quiet=True)
    shares = [(each.way, each.cut, each.train, each.held_out) for each in found.record.attacks]
    assert shares == [(each.way, each.cut, each.train, each.held_out) for each in again.record.attacks]
    table = found.to_pandas()
    assert [*table["set"]].count("train") == shares[1][2].total
    assert table["redrawing_score"].is_monotonic_increasing
    assert "targets noised and redrawn" in found._repr_html_()
    with pytest.raises(iet_agc.UserError, match="other held-out images"):
        iet_agc.attack(run, held_out=digits[-300:], out=found, budget=20, steps=1, quiet=True)


def test_a_run_tells_the_audit_what_it_saw(found: iet_agc.Audit) -> None:
    assert "seen" in (found.folder / "training-images.csv").read_text(encoding="utf-8").splitlines()[0]


def test_the_same_audit_is_there_already_and_another_is_refused(
    found: iet_agc.Audit, run: iet_agc.Run, samples: iet_agc.SampleSet, digits: torch.Tensor, monkeypatch
) -> None:
    from iet_agc.auditing import run as auditing

    real = digits[NUM_TRAIN:]
    with pytest.raises(iet_agc.UserError, match=r"another audit .of other held-out images"):
        iet_agc.audit(run, samples, real[:400], out=found, extractors=["pixels"], quiet=True)
    monkeypatch.setattr(auditing, "audit_sources", lambda *args, **options: pytest.fail("made again"))
    assert iet_agc.audit(run, samples, real.clone(), out=found, extractors=["pixels"], quiet=True) == found


def test_a_run_is_compared_with_the_images_that_it_is_said_to_be_of(
    run: iet_agc.Run, samples: iet_agc.SampleSet, digits: torch.Tensor, tmp_path: Path
) -> None:
    other = iet_agc.Run(run.folder, ImageSet(digits[1:][:NUM_TRAIN], "others"))
    with pytest.raises(iet_agc.UserError, match="was trained on images given from Python"):
        iet_agc.audit(other, samples, out=tmp_path / "audit", quiet=True)
    with pytest.raises(iet_agc.UserError, match="give those images"):
        iet_agc.audit(run.folder, samples, out=tmp_path / "audit", quiet=True)


def test_a_check_raises_where_copies_are_found_and_where_it_cannot_tell(digits: torch.Tensor, tmp_path: Path) -> None:
    train, real, others = digits[:1000], digits[1000:1500], digits[1500:]
    copied = iet_agc.audit(train, train[:60], real, out=tmp_path / "copied", extractors=["pixels"], quiet=True)
    fresh = iet_agc.audit(train, others, real, out=tmp_path / "fresh", extractors=["pixels"], quiet=True)
    blind = iet_agc.audit(train, others, out=tmp_path / "blind", extractors=["pixels"], quiet=True)
    assert (copied.verdict.outcome, copied.copied.share) == ("copies", 1.0)
    with pytest.raises(iet_agc.CheckFailed, match="60 of 60 samples are below the calibrated cut"):
        copied.check(fail_above=0.5)
    assert fresh.verdict.outcome == "chance"
    assert fresh.check(0.05).failed is False
    assert blind.verdict.outcome == "cannot_tell"
    with pytest.raises(iet_agc.UserError, match="had no held-out images"):
        blind.check(0.05)


def test_a_report_is_written_beside_the_first_audit(found: iet_agc.Audit, tmp_path: Path) -> None:
    assert iet_agc.report(found) == found.folder / "report.html"
    assert iet_agc.report([found.folder, str(found.folder)], tmp_path / "both.html").is_file()
    with pytest.raises(iet_agc.UserError, match="at least one audit"):
        iet_agc.report([])


def test_a_card_stands_beside_the_weights_and_quotes_the_audit(
    run: iet_agc.Run, found: iet_agc.Audit, tmp_path: Path
) -> None:
    assert iet_agc.card(run) == run.folder / "README.md"
    assert "not audited" in (run.folder / "README.md").read_text().lower()
    assert iet_agc.card(run.folder, found) == run.folder / "README.md"
    assert "not audited" not in (one := (run.folder / "README.md").read_text()).lower()
    assert iet_agc.card(run, [found.folder], tmp_path / "card.md").read_text() == one
    (tmp_path / "mine.md").write_text("mine")
    with pytest.raises(iet_agc.UserError, match="no model card of ours"):
        iet_agc.card(run, out=tmp_path / "mine.md")


def test_a_guard_of_images_in_memory(run: iet_agc.Run, digits: torch.Tensor, tmp_path: Path) -> None:
    real = digits[NUM_TRAIN:]
    guarded = iet_agc.sample(run, 4, out=tmp_path / "guarded", steps=2, guard=run, held_out=real, quiet=True)
    assert len(guarded) == 4
    assert "guard" in (guarded.folder / "samples.json").read_text(encoding="utf-8")
    with pytest.raises(iet_agc.UserError, match="those of a guard"):
        iet_agc.sample(run, 4, out=tmp_path / "other", held_out=real)


# Tables and notebooks ---------------------------------------------------------------------------------------


def test_results_are_tables(run: iet_agc.Run, samples: iet_agc.SampleSet, found: iet_agc.Audit) -> None:
    pytest.importorskip("pandas")
    curves, drawn, table = run.to_pandas(), samples.to_pandas(), found.to_pandas()
    ratios = table["ratio"].tolist()
    assert len(curves) == 2 * 2 * 3  # members, rounds, points of each
    assert {"member", "step", "loss", "skip_rate"} <= {*curves.columns}
    assert drawn["seed"].tolist() == samples.seeds
    assert table["seed"].tolist() == samples.seeds
    assert sum(ratio < found.record.cut for ratio in ratios) == found.copied.count
    assert repr(ratios[0]) in (found.folder / "samples.csv").read_text(encoding="utf-8")
    assert table["mirrored"].dtype == bool


def test_a_table_without_pandas_is_one_clear_line(samples: iet_agc.SampleSet, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(iet_agc.UserError, match=r"pip install 'iet-agc\[pandas\]'"):
        samples.to_pandas()


def test_a_damaged_table_is_refused(digits: torch.Tensor, tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    audit = iet_agc.audit(digits[:60], digits[60:70], out=tmp_path / "a", extractors=["pixels"], quiet=True)
    with (audit.folder / "samples.csv").open("a", encoding="utf-8") as stream:
        stream.write("\n")
    with pytest.raises(iet_agc.UserError, match=r"samples.csv is not as it was written"):
        audit.to_pandas()


def test_results_show_themselves(run: iet_agc.Run, samples: iet_agc.SampleSet, found: iet_agc.Audit) -> None:
    audit = found._repr_html_()
    assert "No copying beyond chance shown" in audit
    assert "0 of 8, 0 %" in audit
    assert audit.count("data:image/png;base64,") == 2 * 3
    assert "8 images drawn" in samples._repr_html_()
    assert "5 to 12" in samples._repr_html_()
    for each in (run, samples):
        assert each._repr_html_().count("data:image/png;base64,") == 1


def test_names_are_escaped() -> None:
    from iet_agc.reporting.notebook import result_html

    assert "<b>" not in result_html("<b>", [("<b>", "<b>")], [("<b>", [])])


# Paths and settings -----------------------------------------------------------------------------------------


def test_images_of_a_path_are_settings_of_the_run(digits: torch.Tensor, tmp_path: Path) -> None:
    """So that the run is a source of them; nothing of the preset's own images is held out or planted."""
    np.save(tmp_path / "images.npy", digits[:40].numpy())
    tiny = {"train.steps": 2, "train.batch_size": 4, "method.members": 2, "run.preview_images": 0, "model.channels": 8}
    tiny |= {"model.multipliers": (1, 2), "model.groups": 4, "model.attention": [], "method.rounds": 1}
    run = iet_agc.train("digits-iet-agc", tmp_path / "images.npy", out=tmp_path / "run", settings=tiny, quiet=True)
    data = run.settings.data
    assert (data.name, data.root, data.planted_images) == ("folder", str(tmp_path / "images.npy"), 0)
    assert run.images is None
    further = iet_agc.train(run.settings, out=tmp_path / "further", init=run, settings={"train.seed": 1}, quiet=True)
    assert further.settings.init.model == str(run.folder)
    assert "training images</td>" in run._repr_html_()


def test_settings_take_python_values() -> None:
    changes = {"train.steps": 5, "model.multipliers": [1, 2], "data.flips": True, "data.num_train": None}
    chosen = override(Settings(), {**changes, "init.model": Path("some/run"), "train.learning_rate": 1e-3})
    assert chosen == override(
        Settings(),
        {
            "train.steps": "5",
            "model.multipliers": "1, 2",
            "data.flips": "true",
            "data.num_train": "none",
            "init.model": "some/run",
            "train.learning_rate": "0.001",
        },
    )
    with pytest.raises(iet_agc.UserError, match=r"train.steps: .*valid integer.* \(it is \[5\]\)"):
        override(Settings(), {"train.steps": [5]})


def test_unknown_settings_and_presets_are_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(iet_agc.UserError, match=r"did you mean 'train\.seed'"):
        iet_agc.train("digits-iet-agc", out=tmp_path / "a", settings={"train.sed": 1})
    with pytest.raises(iet_agc.UserError, match="unknown preset 'digit-iet-agc'; did you mean"):
        iet_agc.train("digit-iet-agc", out=tmp_path / "a")
    with pytest.raises(iet_agc.UserError, match=r"no model_index\.json"):
        iet_agc.sample(tmp_path, 4, out=tmp_path / "a")
    with pytest.raises(iet_agc.UserError, match="images holds float32"):
        iet_agc.train("digits-iet-agc", torch.zeros(4, 1, 8, 8), out=tmp_path / "a")
    assert not (tmp_path / "a").exists()
    with pytest.raises(TypeError, match="out"):
        iet_agc.train("digits-iet-agc")  # pyright: ignore[reportCallIssue]
