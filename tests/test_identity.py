"""A run is known by its settings, images and weights: what is changed behind its back is found before it is used."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from iet_agc.auditing.schema import AuditRecord, AuditWarning, UnknownImages, UnknownOrigin, read_record
from iet_agc.auditing.sources import load_guard, load_part
from iet_agc.config.overrides import override
from iet_agc.config.run_folder import read_settings
from iet_agc.config.settings import Settings, validate
from iet_agc.data.datasets.registry import load_dataset
from iet_agc.data.grids import save_image
from iet_agc.data.image_set import ImageSet
from iet_agc.runtime.errors import UserError
from iet_agc.sampling.sample_set import sample_run
from iet_agc.training import loop
from iet_agc.training.identity import check_pipeline, read_identity
from iet_agc.training.initialization import folders_of
from iet_agc.training.loop import start, train
from tests.audits_on_disk import audit_on_disk
from tests.commands import call as call_cli
from tests.image_sets import load_named

CPU = torch.device("cpu")
TINY = {
    "data.name": "folder",
    "data.num_train": "60",
    "model.channels": "4",
    "model.multipliers": "1",
    "model.blocks": "1",
    "model.attention": "",
    "model.groups": "4",
    "method.rounds": "2",
    "train.steps": "2",
    "train.batch_size": "8",
    "sample.num": "4",
    "sample.steps": "2",
    "run.preview_images": "0",
    "run.device": "cpu",
}


def noise(count: int, seed: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, 1, 8, 8), generator=rng, dtype=torch.uint8)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images/, a finished run and its samples."""
    base = tmp_path_factory.mktemp("trained")
    (base / "images").mkdir()
    for number, image in enumerate(noise(180, 0)):
        save_image(image, base / "images" / f"{number:03d}.png")
    start(settings(base), base / "run", lambda steps: None)
    sample_run(base / "run", base / "run" / "samples", on_images=lambda images: None)
    return base


@pytest.fixture
def base(trained: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    shutil.copytree(trained, tmp_path / "base")
    edit_config(tmp_path / "base", "root", str(tmp_path / "base" / "images"))
    return tmp_path / "base"


def settings(base: Path, **changes: str) -> Settings:
    return override(validate({}), TINY | {"data.root": str(base / "images")} | changes)


def edit_config(base: Path, name: str, value: object) -> None:
    file = base / "run" / "config.json"
    content = json.loads(file.read_text())
    content["data"][name] = value
    file.write_text(json.dumps(content))


def audit(base: Path, samples: str = "run", held_out: str | None = "run", out: str = "audit") -> AuditRecord:
    real = str(base / held_out) if held_out else None
    return audit_on_disk(
        str(base / "run"), str(base / samples), real, base / out, on_done=lambda share: None, device="cpu"
    )


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.unlink()  # it may have a second name
    file.write_bytes(content)


def one_line(error: pytest.ExceptionInfo[ValueError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


# -- images


def test_a_run_writes_down_what_it_is(base: Path) -> None:
    images, held_out = load_dataset(settings(base).data)
    known = read_identity(base / "run")
    assert known is not None
    assert (known["train"]["sha256"], known["train"]["num"]) == (images.fingerprint, 60)
    assert (known["held_out"]["sha256"], known["held_out"]["num"]) == (held_out.fingerprint, 120)
    assert known["settings"]["data"]["seed"] == 0
    assert "root" not in known["settings"]["data"]
    assert WEIGHTS in known["weights"]["raw"]
    assert audit(base).warnings == audit(base, "run/samples", None, "b").warnings == ()


def test_images_that_were_overwritten_are_refused(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a folder, all of them, by an audit and by a guard, before any work."""
    for number, image in enumerate(noise(180, 1)):
        save_image(image, base / "images" / f"{number:03d}.png")
    monkeypatch.setattr("iet_agc.auditing.run.audit", lambda *_, **__: pytest.fail("at work"))
    with pytest.raises(
        ValueError, match=r"the training images that .*run reads now .* are not those that it was"
    ) as error:
        audit(base)
    assert "put them back, or give the original images themselves" in one_line(error)
    assert not (base / "audit").exists()
    with pytest.raises(ValueError, match=r"images that .*run reads now"):
        load_guard(str(base / "run"))
    given = ImageSet(noise(30, 3), "given")
    np.save(base / "given.npy", given.images.numpy())
    with pytest.raises(ValueError, match=r"held-out images that .*run reads now"):
        load_part(str(base / "run"), "held-out")
    assert len(load_part(str(base / "given.npy"), "train")[0]) == 30


def test_train_says_in_one_line_that_a_run_is_of_other_images(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, image in enumerate(noise(180, 1)):
        save_image(image, base / "images" / f"{number:03d}.png")
    again = "train", base / "run" / "settings.toml", "--data.root", base / "images", "--out", base / "run"
    status, out, err = call_cli(capsys, *again)
    assert (status, out) == (2, "")
    assert "round-0002 belongs to a run with other settings or images" in err.splitlines()[-1]


def test_held_out_images_that_were_overwritten_are_refused(base: Path) -> None:
    """Though the training images are as they were."""
    rest = load_dataset(settings(base).data)[1]
    assert rest.files is not None
    save_image(noise(1, 5)[0], base / "images" / rest.files[7])
    load_part(str(base / "run"), "train")
    with pytest.raises(ValueError, match=r"held-out images that .* are not those that it was begun with"):
        audit(base)
    audit(base, held_out=None)


@pytest.mark.parametrize(("name", "value"), [("seed", 3), ("flips", True), ("num_train", 61)])
def test_settings_that_were_edited_are_refused(base: Path, name: str, value: object) -> None:
    edit_config(base, name, value)
    with pytest.raises(ValueError, match=rf"config.json is not as the run was trained \(data.{name} was") as error:
        audit(base)
    one_line(error)


@pytest.mark.parametrize("changed", ["images", "config", "nothing"])
def test_an_older_run_is_known_by_its_bundles(base: Path, changed: str, capfd: pytest.CaptureFixture[str]) -> None:
    (base / "run" / "identity.json").unlink()
    if changed == "images":
        for number, image in enumerate(noise(180, 1)):
            save_image(image, base / "images" / f"{number:03d}.png")
        with pytest.raises(ValueError, match=r"images that .*run reads now"):
            audit(base)
    elif changed == "config":
        edit_config(base, "flips", True)
        with pytest.raises(ValueError, match="its bundles are of other settings"):
            audit(base)
    else:
        (warning,) = audit(base).warnings
        told = "does not say which held-out images it was begun with: whether they are the same is not checked"
        assert told in warning.sentence
        assert f"warning: {warning.sentence}" in capfd.readouterr().err


def test_a_run_that_says_nothing_is_audited_with_a_warning(base: Path) -> None:
    (base / "run" / "identity.json").unlink()
    shutil.rmtree(base / "run" / "bundles")
    shutil.rmtree(base / "run" / "raw")
    shutil.rmtree(base / "run" / "ema")
    warnings = audit(base).warnings
    assert [type(warning) for warning in warnings] == [UnknownImages, UnknownOrigin, UnknownImages]
    assert [warning.which for warning in warnings if isinstance(warning, UnknownImages)] == ["training", "held-out"]
    assert "has no weights, so whether it is the run's own is not checked" in warnings[1].sentence
    assert warnings == read_record(base / "audit" / "audit.json").warnings


def test_images_given_from_python_are_not_taken_for_those_of_the_settings(tmp_path: Path) -> None:
    """Of another number, or as many; the run says so, and does not say that they are digits."""
    chosen = override(validate({}), TINY | {"name": "digits-x", "data.name": "digits", "data.num_train": "40"})
    for number in (30, 40):
        run = tmp_path / str(number)
        train(chosen, ImageSet(noise(number, 9), "mine"), run, CPU)
        train(chosen, ImageSet(noise(number, 9), "mine"), run, CPU)  # nothing is left to do, and nothing forgotten
        said = f"As digits-x, but on images given from Python: mine, {number} of 1 x 8 x 8"
        assert read_settings(run).description == said
        assert said in (run / "settings.toml").read_text()
        sample_run(run, run / "samples", on_images=lambda images: None)
        what = rf"was trained on images given from Python \(mine, {number} of them\), not on what its settings read"
        for call in (
            lambda run=run: load_part(str(run), "train"),
            lambda run=run: load_part(str(run), "held-out"),
            lambda run=run: load_guard(str(run)),
            lambda run=run: audit_on_disk(str(run), str(run), None, tmp_path / "audit", device="cpu"),
        ):
            with pytest.raises(UserError, match=what) as error:
                call()
            assert "(digits): give those images themselves, not the run" in one_line(error)
    np.save(tmp_path / "mine.npy", noise(40, 9).numpy())
    found = audit_on_disk(
        str(tmp_path / "mine.npy"), str(run), None, tmp_path / "audit", on_done=lambda share: None, device="cpu"
    )
    assert found.warnings == ()


def test_images_given_from_python_that_are_those_of_the_settings_are_known(tmp_path: Path) -> None:
    chosen = override(validate({}), TINY | {"data.name": "digits", "data.num_train": "40"})
    images, held_out = load_named("digits", num_train=40)
    train(chosen, images, tmp_path / "same", CPU)
    assert torch.equal(load_part(str(tmp_path / "same"), "train")[0].images, images.images)
    said: list[AuditWarning] = []
    assert len(load_part(str(tmp_path / "same"), "held-out", warn=said.append)[0]) == len(held_out)
    assert len(said) == 1
    start(chosen, tmp_path / "same", lambda steps: None)  # which reads them
    assert read_settings(tmp_path / "same").description == chosen.description


def test_settings_that_read_nothing_do_not_hide_that_images_were_given(tmp_path: Path) -> None:
    chosen = override(validate({}), TINY | {"data.root": str(tmp_path / "nowhere")})
    train(chosen, ImageSet(noise(40, 9), "mine"), tmp_path / "run", CPU)
    with pytest.raises(UserError, match=r"was trained on images given from Python \(mine, 40 of them\): give those"):
        load_part(str(tmp_path / "run"), "train")


def test_a_run_of_read_images_says_nothing_of_python(base: Path) -> None:
    images, held_out = load_dataset(settings(base).data)
    before = (base / "run" / "config.json").read_text()
    train(settings(base), images, base / "run", CPU, lambda steps: None, held_out=held_out)
    assert read_settings(base / "run").description == ""
    assert json.loads((base / "run" / "config.json").read_text()).keys() == json.loads(before).keys()
    assert "given" not in (read_identity(base / "run") or {})


def test_a_damaged_identity_is_named(base: Path) -> None:
    file = base / "run" / "identity.json"
    for content in ("{", "[]", "{}", file.read_text().replace('"version": 2', '"version": 9')):
        file.write_text(content)
        with pytest.raises(ValueError, match=r"identity.json is"):
            load_part(str(base / "run"), "train")


# -- samples


def test_samples_of_another_run_are_not_taken_for_a_runs_own(base: Path) -> None:
    start(settings(base, **{"train.seed": "1"}), base / "other", lambda steps: None)
    sample_run(base / "other", base / "elsewhere", on_images=lambda images: None)
    shutil.rmtree(base / "run" / "samples")
    shutil.copytree(base / "elsewhere", base / "run" / "samples")
    for samples in ("run", "run/samples"):
        with pytest.raises(
            ValueError, match=r"run/samples was not drawn from the weights of .*run: sample it"
        ) as error:
            audit(base, samples)
        one_line(error)
    assert audit(base, "elsewhere").num_samples == 4  # from another place they may be anything
    (base / "run" / "identity.json").unlink()
    with pytest.raises(ValueError, match=r"was not drawn from the weights"):  # of an older run the files are hashed
        audit(base)


def test_samples_of_either_weights_are_a_runs_own(base: Path) -> None:
    shutil.rmtree(base / "run" / "samples")
    sample_run(base / "run", base / "run" / "samples", {"weights": "ema"}, on_images=lambda images: None)
    assert audit(base).warnings == ()
    (base / "run" / "identity.json").unlink()
    assert len(audit(base).warnings) == 1  # held-out images, see above


def test_images_without_samples_json_are_audited_with_a_warning(base: Path) -> None:
    shutil.rmtree(base / "run" / "samples")
    (base / "run" / "samples").mkdir()
    np.save(base / "run" / "samples" / "found.npy", noise(4, 4).numpy())
    with pytest.raises(ValueError, match="no images"):
        audit(base)
    for number, image in enumerate(noise(4, 4)):
        save_image(image, base / "run" / "samples" / f"{number}.png")
    assert "does not say which weights drew it" in audit(base).warnings[0].sentence


# -- weights


@pytest.mark.parametrize("file", [WEIGHTS, "scheduler/scheduler_config.json"])
def test_one_flipped_bit_in_weights_is_refused(base: Path, file: str) -> None:
    flip_a_bit(base / "run" / "raw" / file)
    again = rf"raw/{file} is not as it was exported: run the same 'iet-agc train' again"
    for call in (
        lambda: sample_run(base / "run", base / "drawn"),
        lambda: sample_run(base / "run" / "raw", base / "drawn"),
        lambda: folders_of(str(base / "run")),
        lambda: check_pipeline(base / "run" / "raw"),
    ):
        with pytest.raises(ValueError, match=again) as error:
            call()
        one_line(error)
    assert not (base / "drawn").exists()
    sample_run(base / "run", base / "drawn", {"weights": "ema"}, on_images=lambda images: None)
    shutil.copytree(base / "run" / "raw", base / "elsewhere")
    check_pipeline(base / "elsewhere")  # of which nothing is known


@pytest.mark.parametrize("damage", ["bit", "missing file", "missing folder", "telemetry"])
def test_train_mends_what_is_damaged_from_the_bundle(
    base: Path, damage: str, capfd: pytest.CaptureFixture[str]
) -> None:
    run = base / "run"
    before = {name: (run / "raw" / name).read_bytes() for name in (WEIGHTS, "model_index.json")}
    table = (run / "telemetry.csv").read_text()
    if damage == "bit":
        flip_a_bit(run / "raw" / WEIGHTS)
    elif damage == "missing file":
        (run / "raw" / "model_index.json").unlink()
    elif damage == "missing folder":
        shutil.rmtree(run / "raw")
    else:
        (run / "telemetry.csv").write_text(table.replace(",0\n", ",-1\n", 1))
    start(settings(base), run, lambda steps: None)
    assert {name: (run / "raw" / name).read_bytes() for name in before} == before
    assert (run / "telemetry.csv").read_text() == table
    said = capfd.readouterr().err
    assert "is not as it was exported: it is exported again" in said
    check_pipeline(run / "raw")


def test_train_again_writes_no_weights_and_takes_no_files(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, steps = base / "run", []
    (run / "raw" / "README.md").write_text("a person's")
    before = {file: (file.stat().st_ino, file.stat().st_mtime_ns) for file in (run / "raw").rglob("*")}
    monkeypatch.setattr(loop._Run, "_export", lambda self: pytest.fail("exported"))
    start(settings(base), run, steps.append)
    assert steps == [4]
    assert {file: (file.stat().st_ino, file.stat().st_mtime_ns) for file in (run / "raw").rglob("*")} == before


def test_an_export_keeps_a_persons_files(base: Path) -> None:
    run = base / "run"
    (run / "ema" / "card").mkdir()
    (run / "ema" / "card" / "README.md").write_text("a person's")
    (run / "raw" / "README.md").write_text("another's")
    flip_a_bit(run / "raw" / WEIGHTS)
    start(settings(base), run, lambda steps: None)
    assert (run / "ema" / "card" / "README.md").read_text() == "a person's"
    assert (run / "raw" / "README.md").read_text() == "another's"
    assert "README.md" not in (read_identity(run) or {})["weights"]["raw"]


def test_a_finished_run_without_bundles_stays(base: Path) -> None:
    run = base / "run"
    shutil.rmtree(run / "bundles")
    weights = (run / "raw" / WEIGHTS).read_bytes()
    assert start(settings(base), run, lambda steps: None)["steps"] == 4
    assert (run / "raw" / WEIGHTS).read_bytes() == weights
    assert not (run / "bundles").exists()
    flip_a_bit(run / "raw" / WEIGHTS)
    with pytest.raises(ValueError, match=r"is not as it was exported, and .*bundles holds no bundle") as error:
        start(settings(base), run, lambda steps: None)
    one_line(error)


def test_an_older_run_gets_its_hashes_from_train(base: Path) -> None:
    (base / "run" / "identity.json").unlink()
    sample_run(base / "run", base / "drawn", on_images=lambda images: None)  # nothing is claimed, nothing refused
    start(settings(base), base / "run", lambda steps: None)
    known = read_identity(base / "run")
    assert known is not None
    assert WEIGHTS in known["weights"]["ema"]
    assert known["held_out"] is None  # what they were when it began, nobody knows


@pytest.mark.parametrize("after", ["raw", "ema"])
def test_an_export_that_is_killed_is_done_again(base: Path, monkeypatch: pytest.MonkeyPatch, after: str) -> None:
    """Killed when RUN/raw is in its place, or when RUN/ema is, too."""
    honest, run = os.rename, base / "fresh"

    def rename(source: Path, target: Path) -> None:
        honest(source, target)
        if Path(target).name == after:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("iet_agc.runtime.files.os.rename", rename)
        with pytest.raises(KeyboardInterrupt):
            start(settings(base), run, lambda steps: None)
    assert (read_identity(run) or {})["weights"] is None
    assert (run / "ema").exists() == (after == "ema")
    start(settings(base), run, lambda steps: None)
    assert (run / "raw" / WEIGHTS).read_bytes() == (base / "run" / "raw" / WEIGHTS).read_bytes()
    for name in ("raw", "ema"):
        check_pipeline(run / name)


# -- everything else


@pytest.mark.parametrize("name", ["telemetry.csv", "curves/member-0000.jsonl"])
def test_a_flipped_bit_in_what_training_left_is_not_audited(base: Path, name: str) -> None:
    flip_a_bit(base / "run" / name)
    with pytest.raises(ValueError, match=rf"{name} is not as the run left it: ") as error:
        audit(base)
    one_line(error)
    if name == "telemetry.csv":
        start(settings(base), base / "run", lambda steps: None)
    else:
        (base / "run" / name).unlink()
    assert not audit(base).warnings


def test_weights_and_bundles_of_another_run_are_not_audited(base: Path) -> None:
    start(settings(base, **{"train.seed": "1"}), base / "other", lambda steps: None)
    shutil.copytree(base / "run", base / "kept")
    for part in ("raw", "bundles"):
        shutil.rmtree(base / "run" / part)
        shutil.copytree(base / "other" / part, base / "run" / part)
        with pytest.raises(ValueError, match=r"is not as it was exported|its bundles are of other settings") as error:
            audit(base)
        one_line(error)
        shutil.rmtree(base / "run" / part)
        shutil.copytree(base / "kept" / part, base / "run" / part)
    shutil.rmtree(base / "run" / "ema")  # to save room
    assert not audit(base).warnings


@pytest.mark.parametrize("edit", [("yes", "no"), ('"num": 60', '"num": 61'), ('"version": 2', '"version": 1')])
def test_an_edited_identity_is_refused(base: Path, edit: tuple[str, str]) -> None:
    file = base / "run" / "identity.json"
    text = file.read_text()
    if edit[0] not in text:
        edit = (json.loads(text)["train"]["sha256"], "0" * 64)
    file.write_text(text.replace(*edit, 1))
    with pytest.raises(ValueError, match=r"identity.json is not as it was written: restore it from a copy"):
        audit(base)


def test_of_a_run_before_there_were_seals_the_weights_are_known(base: Path) -> None:
    file = base / "run" / "identity.json"
    known = json.loads(file.read_text())
    del known["seal"]
    file.write_text(json.dumps(known))
    with pytest.raises(ValueError, match=r"identity.json is 'iet-agc run' version 2, not a whole"):
        audit(base)
    file.write_text(json.dumps(known | {"version": 1}))
    assert not audit(base).warnings
    flip_a_bit(base / "run" / "raw" / WEIGHTS)
    with pytest.raises(ValueError, match="is not as it was exported"):
        audit(base)
