"""The model card: the hub's parser reads it, and it claims no more than the audits allow."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard, metadata_load
from huggingface_hub.repocard_data import model_index_to_eval_results

import iet_agc
from iet_agc.auditing.model_card import write_card
from iet_agc.config.presets import load_preset
from iet_agc.reporting.model_card import method_in_words
from iet_agc.runtime.errors import UserError
from tests.commands import call
from tests.tiny_runs import settings

NUM_TRAIN = 1300


@pytest.fixture(scope="module")
def digits() -> torch.Tensor:
    from iet_agc.config.data_settings import DigitsData
    from iet_agc.data.datasets.registry import load_dataset

    train, held_out = load_dataset(DigitsData(num_train=NUM_TRAIN))
    return torch.cat([train.images, held_out.images])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> iet_agc.Run:
    """A run of the preset's own digits, with samples and an audit."""
    run = iet_agc.train(settings(data__num_train=NUM_TRAIN), out=tmp_path_factory.mktemp("card") / "run", quiet=True)
    samples = iet_agc.sample(run, 60, out=run.folder / "samples", steps=2, quiet=True)
    iet_agc.audit(run, samples, run, out=run.folder / "audit", extractors=["pixels"], quiet=True)
    return run


def audit(run: iet_agc.Run, name: str, samples: object, held_out: object = None) -> Path:
    options = {"out": run.folder / name, "extractors": ["pixels"], "quiet": True}
    return iet_agc.audit(run, samples, held_out, **options).folder  # pyright: ignore[reportArgumentType]


def card(run: iet_agc.Run, *audits: Path, out: Path | None = None) -> tuple[str, Any]:
    """The text of a card, and what the hub's library reads in it."""
    write_card(run.folder, audits, out)
    file = out or run.folder / "README.md"
    return file.read_text(encoding="utf-8"), ModelCard.load(file)


def test_without_an_audit_it_says_so_and_quotes_nothing(run: iet_agc.Run, tmp_path: Path) -> None:
    text, read = card(run, out=tmp_path / "README.md")
    assert "**Not audited.**" in text
    assert "beyond chance" not in text
    assert read.data.library_name == "diffusers"
    assert read.data.pipeline_tag == "unconditional-image-generation"
    assert "not-audited" in (read.data.tags or [])
    assert read.data.eval_results is None


def test_the_hub_reads_the_numbers_of_the_audit(run: iet_agc.Run) -> None:
    text, read = card(run, run.folder / "audit")
    numbers = iet_agc.Audit(run.folder / "audit").record
    index = metadata_load(run.folder / "README.md")["model-index"]
    name, results = model_index_to_eval_results(index)
    assert name == read.data.model_name == "run"
    assert [each.metric_type for each in results] == ["copied_share", "frechet_distance"]
    assert results[0].metric_value == numbers.copied.share
    assert (results[0].metric_args or {})["ci95"] == list(numbers.copied.ci95)
    assert results[1].metric_value == numbers.quality.frechet_held_out
    assert (results[0].dataset_type, results[0].dataset_name) == ("digits", "digits")
    assert "### No copying beyond chance shown" in text
    assert "does not show that nothing is copied" in text
    assert "What such an audit cannot detect" in text


def test_it_tells_what_the_model_is(run: iet_agc.Run) -> None:
    text, _ = card(run, run.folder / "audit")
    identity = json.loads((run.folder / "identity.json").read_text(encoding="utf-8"))
    for said in (
        identity["train"]["sha256"],
        identity["held_out"]["sha256"],
        "1,300, repeated ones counted",
        "497 images",
        "2 members, each on a shard of the training set, averaged after each of 2 rounds",
        "below 0.5 of the mean loss",
        "24, of all members in all rounds",
        "192, in batches of 8",
        'from_pretrained("raw")',
        identity["weights"]["raw"]["unet/diffusion_pytorch_model.safetensors"],
        f"iet-agc {iet_agc.__version__}",
    ):
        assert said in text
    assert str(run.folder.parent) not in text


def test_the_pipeline_that_it_names_loads(run: iet_agc.Run) -> None:
    from diffusers import DiffusionPipeline

    pipeline: Any = DiffusionPipeline.from_pretrained(run.folder / "raw")
    pipeline.set_progress_bar_config(disable=True)
    assert len(pipeline(num_inference_steps=2).images) == 1


def test_where_an_audit_cannot_tell_nothing_is_quoted(run: iet_agc.Run, digits: torch.Tensor) -> None:
    folder = audit(run, "blind", run.folder / "samples")
    text, read = card(run, folder)
    assert "### Cannot tell" in text
    assert "too few to set a cut" in text
    assert "beyond chance shown" not in text
    assert read.data.eval_results is None
    near = (digits[:400].int() + torch.randint(-9, 10, (400, 1, 8, 8))).clamp(0, 255).to(torch.uint8)
    text, read = card(run, audit(run, "close", run.folder / "samples", near))
    assert "### Cannot tell" in text
    assert read.data.eval_results is None


def test_samples_of_unknown_origin_are_not_quoted_as_the_models(run: iet_agc.Run, digits: torch.Tensor) -> None:
    text, read = card(run, audit(run, "copies", digits[:60], digits[NUM_TRAIN:]))
    assert "### Copies found, of samples of unknown origin" in text
    assert "60 of 60" in text
    assert read.data.eval_results is None


def test_samples_that_changed_after_the_audit_are_not_the_audits(run: iet_agc.Run, tmp_path: Path) -> None:
    samples = iet_agc.sample(run, 20, out=tmp_path / "samples", steps=2, quiet=True)
    folder = audit(run, "changed", samples, run)
    assert card(run, folder)[1].data.eval_results
    shutil.rmtree(tmp_path / "samples")
    iet_agc.sample(run, 20, out=tmp_path / "samples", steps=2, first_seed=100, quiet=True)
    assert card(run, folder)[1].data.eval_results is None


def test_audits_of_something_else_are_refused(run: iet_agc.Run, digits: torch.Tensor, tmp_path: Path) -> None:
    np.save(tmp_path / "other.npy", digits[1:].numpy())
    other = iet_agc.audit(tmp_path / "other.npy", run.folder / "samples", out=tmp_path / "a", extractors=["pixels"])
    with pytest.raises(UserError, match="against other images than"):
        write_card(run.folder, [other.folder])
    further = iet_agc.train(settings(data__num_train=NUM_TRAIN, train__seed=1), out=tmp_path / "run", quiet=True)
    theirs = iet_agc.sample(further, 20, out=tmp_path / "samples", steps=2, quiet=True)
    with pytest.raises(UserError, match="samples that other weights"):
        write_card(run.folder, [audit(run, "theirs", theirs)])


def test_the_same_card_is_left_a_longer_one_replaces_it_and_others_stay(run: iet_agc.Run, tmp_path: Path) -> None:
    out = tmp_path / "card.md"
    write_card(run.folder, (), out)
    os.utime(out, (1, 1))
    write_card(run.folder, (), out)
    assert out.stat().st_mtime == 1
    assert write_card(run.folder, [run.folder / "audit"], out)["outcomes"] == ["chance"]
    assert out.stat().st_mtime > 1
    out.write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match="no model card of ours"):
        write_card(run.folder, (), out)
    assert out.read_text(encoding="utf-8") == "mine"
    with pytest.raises(UserError, match="no model card of ours"):
        write_card(run.folder, (), tmp_path)


def test_damaged_weights_and_unfinished_runs_get_no_card(run: iet_agc.Run, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run.folder, copy)
    weights = copy / "raw" / "unet" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UserError, match="not as it was exported"):
        write_card(copy)
    with pytest.raises(UserError, match="is not a run"):
        write_card(tmp_path)


def test_a_run_on_images_from_memory_claims_no_data_set(digits: torch.Tensor, tmp_path: Path) -> None:
    run = iet_agc.train(settings(), digits[:NUM_TRAIN], out=tmp_path / "run", quiet=True)
    samples = iet_agc.sample(run, 60, out=tmp_path / "run" / "samples", steps=2, quiet=True)
    text, read = card(run, audit(run, "audit", samples, digits[NUM_TRAIN:]))
    assert "handed over by a program" in text
    assert "| source |" not in text
    assert read.data.eval_results is not None
    assert {each.dataset_type for each in read.data.eval_results} == {"images"}


@pytest.mark.parametrize(
    ("preset", "words"),
    [
        ("digits-default", "plain training: one model, no sample skipped"),
        ("digits-gap", "gap training (arXiv 2602.17846): timesteps 80 to 259 are drawn 0.05 times as often"),
        ("digits-u-shaped", "U-shaped timesteps (arXiv 2603.13421)"),
        ("digits-ambient", "Ambient Diffusion (arXiv 2502.21278): above timestep 200"),
        ("digits-smoothed", "smoothed targets (arXiv 2601.19285): up to timestep 200"),
        ("digits-min-snr", "min-SNR loss weights (arXiv 2303.09556), gamma 5"),
        ("digits-iet-agc-exchange", "after every second round (arXiv 2502.09434) members hand on the 25%"),
    ],
)
def test_what_a_run_did_against_copying_is_said(preset: str, words: str) -> None:
    assert words in method_in_words(load_preset(preset))


def test_names_format_nothing() -> None:
    from iet_agc.reporting.model_card import _code

    assert _code("a`b\n# c") == "`a'b # c`"


def test_the_verb_tells_where_the_card_is(run: iet_agc.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "card.md"
    status, printed, _ = call(capsys, "card", run.folder, "--audit", run.folder / "audit", "--out", out)
    assert (status, json.loads(printed)["verdict"]) == (0, "No copying beyond chance shown")
    assert out.is_file()
    status, printed, told = call(capsys, "card", run.folder, "--audit", tmp_path / "missing")
    assert (status, printed) == (2, "")
    assert "audit.json is not there" in told
