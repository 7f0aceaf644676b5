"""No option without an effect: every setting is changed, alone, and something that matters must differ."""

import ast
import re
from pathlib import Path
from typing import TypeGuard

import pytest
import torch

from iet_agc.config.overrides import override
from iet_agc.config.presets import load_preset, preset_names
from iet_agc.config.settings import Settings, documented
from iet_agc.data.grids import save_image
from iet_agc.reporting.comparison import compare
from iet_agc.runtime.distributed import choose_device
from iet_agc.sampling.sample_set import load_samples, sample_run
from iet_agc.training import checkpoint
from iet_agc.training.loop import start
from tests.audit_folders import write_audit
from tests.image_sets import load_named
from tests.tiny_runs import weights

BASE = override(
    Settings(),
    {
        "name": "base",
        "data.num_train": "60",
        "data.seed": "2",  # of every class an image
        "data.planted_images": "3",
        "data.planted_copies": "3",
        "model.channels": "8",
        "model.multipliers": "1,2",
        "model.blocks": "1",
        "model.attention": "",
        "model.groups": "4",
        "method.members": "2",
        "method.rounds": "2",
        "method.skip_below": "0.9",
        "method.decay": "0",
        "train.steps": "3",
        "train.batch_size": "32",
        "train.warmup_steps": "2",
        "train.ema_decay": "0.5",
        "sample.num": "4",
        "sample.steps": "2",
        "run.log_every": "2",
        "run.save_every": "2",
        "run.preview_images": "2",
        "run.threads": "1",
        "run.device": "cpu",
    },
)


def drawn(run, samples):
    sample_run(run, samples)
    return load_samples(samples)[0].images


def preview(run):
    return (run / "previews" / "round-0002.png").read_bytes()


def points(run):
    return len((run / "curves" / "member-0000.jsonl").read_text().splitlines())


#: What each setting is changed to, and where the change must be seen.
CHANGES = {
    "name": ("other", "compare"),
    "description": ("other", "config"),
    "data.name": ("folder", "weights"),
    "data.root": (None, "weights"),
    "data.convert_to": ("1x4x4", "weights"),
    "data.num_train": ("50", "weights"),
    "data.planted_images": ("2", "weights"),
    "data.planted_copies": ("2", "weights"),
    "data.planted_kind": ("shifted", "weights"),
    "data.flips": ("true", "weights"),
    "data.seed": ("1", "weights"),
    "model.channels": ("12", "weights"),
    "model.multipliers": ("1,1", "weights"),
    "model.blocks": ("2", "weights"),
    "model.attention": ("4", "weights"),
    "model.dropout": ("0.5", "weights"),
    "model.groups": ("2", "weights"),
    "model.classes": ("10", "weights"),
    "model.initialization": ("ddpm", "weights"),
    "init.model": (None, "weights"),
    "init.sha256": (None, "refused"),
    "init.revision": (None, "fetched"),
    "method.members": ("3", "weights"),
    "method.rounds": ("3", "weights"),
    "method.sharding": ("contiguous", "weights"),
    "method.keep_duplicates_together": ("true", "weights"),
    "method.skip_below": ("0", "weights"),
    "method.decay": ("0.9", "weights"),
    "method.random_skip": ("0.5", "weights"),
    "method.exchange": ("0.5", "weights"),
    "train.steps": ("4", "weights"),
    "train.batch_size": ("16", "weights"),
    "train.learning_rate": ("1e-3", "weights"),
    "train.weight_decay": ("0.1", "weights"),
    "train.warmup_steps": ("9", "weights"),
    "train.learning_rate_fall": ("1", "weights"),
    "train.grad_clip": ("1e-8", "weights"),
    "train.ema_decay": ("0.9", "ema"),
    "train.average_last": ("0.5", "ema"),
    "train.timesteps": ("u-shaped", "weights"),
    "train.target": ("ambient", "weights"),
    "train.min_snr": ("1", "weights"),
    "train.seed": ("1", "weights"),
    "train.precision": ("bfloat16", "weights"),
    "train.compile": ("true", "weights"),
    "sample.num": ("5", "samples"),
    "sample.steps": ("3", "samples"),
    "sample.weights": ("ema", "samples"),
    "sample.first_seed": ("1", "samples"),
    "sample.precision": ("bfloat16", "samples"),
    "run.device": ("cuda", "refused without a GPU"),
    "run.threads": ("2", "threads"),
    "run.save_every": ("9", "bundles"),
    "run.log_every": ("1", "points"),
    "run.preview_images": ("3", "preview"),
}


#: Settings of image sets and models that are not at hand here, and the test that shows the effect of each.
ELSEWHERE = {
    "data.download": "test_datasets.py::test_an_archive_that_is_there_is_unpacked_without_a_network",
    "data.classes": "test_datasets.py::test_classes_of_a_folder_are_its_subfolders",
    "data.captions": "test_captions.py::test_captions_beside_images",
    "data.caption": "test_one_caption.py::test_a_folder_without_captions_is_trained_on",
    "data.caption_column": "test_hugging_face.py::test_captions_in_a_column",
    "data.revision": "test_hugging_face.py::test_a_dataset_of_the_hub_is_taken_at_a_revision",
    "data.subset": "test_hugging_face.py::test_configurations",
    "data.train_split": "test_hugging_face.py::test_two_splits",
    "data.held_out_split": "test_hugging_face.py::test_two_splits",
    "data.image_column": "test_hugging_face.py::test_parquet_files_with_labels",
    "data.label_column": "test_hugging_face.py::test_parquet_files_with_labels",
    "data.orient": "test_mending.py::test_settings_mend_a_training_set",
    "data.background": "test_mending.py::test_settings_mend_a_training_set",
    "data.on_bad": "test_mending.py::test_settings_mend_a_training_set",
    "data.crop": "test_mending.py::test_a_training_set_is_cropped_by_its_settings",
    "data.cache": "test_image_cache.py::test_equal_to_no_cache",
    "data.deduplicate": "test_deduplication.py::test_one_of_each_group_is_trained_on",
    "data.held_out": "test_deduplication.py::test_other_images_are_held_out_from_another_folder",
    "data.resize": "test_datasets.py::test_a_folder_is_resized_as_asked",
    "data.planted_captions": "test_captions.py::test_captions_of_planted_images_are_a_setting",
    "model.kind": "test_text.py::test_a_run_learns_and_leaves_frozen_parts_alone",
    "model.network": "test_dit.py::test_the_rest_is_what_the_network_is_made_of",
    "model.objective": "test_dit.py::test_weights_follow_from_what_changes_no_shape",
    **{
        f"model.{name}": "test_dit.py::test_the_rest_is_what_the_network_is_made_of"
        for name in ("patch_size", "width", "depth", "heads")
    },
    "lora.rank": "test_lora.py::test_rank_and_alpha_have_an_effect",
    "lora.alpha": "test_lora.py::test_rank_and_alpha_have_an_effect",
    "text.captions": "test_text.py::test_a_shard_takes_its_own_captions",
    "text.embedding_noise": "test_text.py::test_text_mitigations_do_what_they_say",
    "text.train_encoder": "test_text.py::test_a_text_encoder_learns_if_it_is_trained",
    "text.drop_caption": "test_text.py::test_dropped_captions_are_the_empty_text",
    "text.too_long": "test_captions.py::test_captions_that_are_too_long_are_cut",
    "text.change_rate": "test_captions.py::test_the_rate_has_an_effect",
    "text.random_caption": "test_captions.py::test_a_step_tells_changed_captions",
    "text.random_tokens": "test_captions.py::test_a_step_tells_changed_captions",
    "text.random_numbers": "test_captions.py::test_a_step_tells_changed_captions",
    "text.repeat_words": "test_captions.py::test_a_step_tells_changed_captions",
    "method.skip_within": "test_timesteps.py::test_agc_may_skip_within_the_gap_only",
    "method.skip_reference": "test_generalization_gap.py::test_a_run_is_a_plain_loop_that_looks_at_held_out_images",
    "train.gap_low": "test_timesteps.py::test_a_computed_gap_is_written_down_and_the_run_is_one_of_these_numbers",
    "train.gap_high": "test_timesteps.py::test_a_computed_gap_is_written_down_and_the_run_is_one_of_these_numbers",
    "train.gap_density": "test_timesteps.py::test_a_run_is_a_plain_loop_with_timesteps_drawn_by_hand",
    "train.dp_noise": "test_differential_privacy.py::test_settings_of_dp_sgd_have_an_effect",
    "train.dp_clip": "test_differential_privacy.py::test_settings_of_dp_sgd_have_an_effect",
    "train.dp_multiplicity": "test_differential_privacy.py::test_settings_of_dp_sgd_have_an_effect",
    "train.dp_delta": "test_differential_privacy.py::test_delta_has_an_effect",
    "train.u_sharpness": "test_timesteps.py::test_a_run_is_a_plain_loop_with_timesteps_drawn_by_hand",
    "train.logit_mean": "test_timesteps.py::test_a_run_is_a_plain_loop_with_timesteps_drawn_by_hand",
    "train.logit_deviation": "test_timesteps.py::test_a_run_is_a_plain_loop_with_timesteps_drawn_by_hand",
    "train.target_timestep": "test_targets.py::test_the_timestep_has_an_effect",
    "run.watch_every": "test_watching.py::test_the_end_is_watched_whatever_the_steps",
    "run.watch_images": "test_watching.py::test_more_images_and_steps_are_other_points",
    "run.watch_denoising_steps": "test_watching.py::test_more_images_and_steps_are_other_points",
    "run.keep_watched": "test_watching.py::test_snapshots_are_the_run_with_fewer_steps",
    "run.stop_when_copying": "test_watching.py::test_a_run_stops_when_it_copies_and_leaves_the_weights_of_before",
    "sample.guidance": "test_text.py::test_prompts_and_guidance_have_an_effect",
    "sample.scheduler": "test_captions.py::test_samplers_draw_what_stock_diffusers_draws",
    "sample.random_tokens": "test_captions.py::test_every_mitigation_changes_what_is_drawn",
    "sample.random_numbers": "test_captions.py::test_every_mitigation_changes_what_is_drawn",
    "sample.repeat_words": "test_captions.py::test_every_mitigation_changes_what_is_drawn",
    "sample.amg_strength": "test_amg.py::test_the_strength_has_an_effect",
    "sample.embedding_noise": "test_captions.py::test_every_mitigation_changes_what_is_drawn",
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return observe(
        BASE, tmp_path_factory.mktemp("base"), {seen for name, (_, seen) in CHANGES.items() if name not in ALONE}
    )


def observe(settings, folder, wanted=("weights",)):
    """What a person could see of a tiny run."""
    torch.set_num_threads(1)
    sealed, threads, honest = [], set(), checkpoint.seal
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "seal", lambda *arguments: (sealed.append(1), honest(*arguments)))
        start(settings, folder / "run", lambda steps: threads.add(torch.get_num_threads()))
    run = folder / "run"
    if "compare" in wanted:
        write_audit(run / "audit")
    seen = {
        "weights": lambda: {name: tensor.numpy().tobytes() for name, tensor in weights(run).items()},
        "ema": lambda: {name: tensor.numpy().tobytes() for name, tensor in weights(run, "ema").items()},
        "samples": lambda: drawn(run, run / "samples").numpy().tobytes(),
        "config": (run / "config.json").read_text,
        "compare": lambda: list(compare([run])),
        "threads": lambda: threads,
        "bundles": lambda: len(sealed),
        "points": lambda: points(run),
        "preview": lambda: preview(run),
    }
    return {name: seen[name]() for name in wanted}


def test_every_setting_is_in_the_table():
    assert {*CHANGES, *ELSEWHERE} == {name for name, *_ in documented(BASE)}


def reached(file: Path, name: str) -> str:
    """The source of a test with all of the tests that it uses: fixtures, helpers, constants."""
    definitions = defined(file.read_text(encoding="utf-8"))
    found: dict[str, str] = {}
    todo = [name]
    while todo:
        if (word := todo.pop()) not in definitions or word in found:
            continue
        node = definitions[word]
        if isinstance(node, ast.ImportFrom):
            found[word] = reached(file.with_name(f"{(node.module or '').removeprefix('tests.')}.py"), word)
        else:
            found[word] = ast.unparse(node)
            todo += re.findall(r"\w+", found[word])
    return "\n".join(found.values())


def defined(source: str) -> dict[str, ast.stmt]:
    """What defines each name at the top of a file of tests, or imports it from another one."""
    found: dict[str, ast.stmt] = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            found |= {each.id: node for each in ast.walk(node) if is_bound(each)}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tests."):
            found |= {alias.name: node for alias in node.names}
    return found


def is_bound(node: ast.AST) -> TypeGuard[ast.Name]:
    return isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)


@pytest.mark.parametrize("setting", ELSEWHERE)
def test_every_setting_that_is_shown_elsewhere_has_its_test_there(setting):
    """The test is there, and it, or what it uses of its file, names the setting."""
    file, name = ELSEWHERE[setting].split("::")
    found = reached(Path(__file__).with_name(file), name)
    assert found.startswith(("def ", "@")), f"{file} has no {name}"
    assert re.search(rf"(?:\b|__){setting.split('.')[1]}\b", found.replace("-", "_")), f"{name} does not name it"


def test_what_a_test_uses_is_read_and_nothing_else(tmp_path):
    file = tmp_path / "test_it.py"
    (tmp_path / "other.py").write_text("E = 5\nF = E\nG = 7\n")
    file.write_text(
        "from tests.other import F\nA = 1\nB, C = A, 2\nD = 3\n"
        "def helper(): return B, F\ndef test_one(): helper()\ndef test_two(): C\n"
    )
    for word, used in {"A = 1": True, "D = 3": False, "E = 5": True, "G = 7": False}.items():
        assert (word in reached(file, "test_one")) == used
    assert "helper" not in reached(file, "test_two")
    assert reached(file, "test_none") == ""


#: Those with a test of their own; those of `init` have theirs in test_initial.py, compiling in test_precision.py.
ALONE = {"data.root", "run.device", "init.model", "init.sha256", "init.revision", "train.compile"}


def folder_of(folder, invert):
    """80 digits as PNGs, or their negatives."""
    folder.mkdir()
    for number, image in enumerate(load_named("digits")[0].images[:80]):
        save_image(255 - image if invert else image, folder / f"{number:03d}.png")
    return str(folder)


@pytest.mark.parametrize("name", [name for name in CHANGES if name not in ALONE])
def test_every_setting_has_an_effect(name, base, tmp_path):
    value, seen = CHANGES[name]
    assert value is not None
    changes = {name: value}
    if name == "data.name":  # a folder has to be somewhere
        changes["data.root"] = folder_of(tmp_path / "images", invert=False)
    assert observe(override(BASE, changes), tmp_path, [seen])[seen] != base[seen]


def test_the_root_has_an_effect(tmp_path):
    found = []
    for name, invert in (("plain", False), ("inverted", True)):
        (tmp_path / name).mkdir()
        root = folder_of(tmp_path / name / "images", invert)
        found.append(observe(override(BASE, {"data.name": "folder", "data.root": root}), tmp_path / name)["weights"])
    assert found[0] != found[1]


def test_the_device_has_an_effect(tmp_path):
    changed = override(BASE, {"run.device": "cuda"})
    if torch.cuda.is_available():
        assert choose_device(changed.run.device).type == "cuda"
        return
    with pytest.raises(ValueError, match="torch sees no GPU"):
        start(changed, tmp_path / "run")


def test_settings_of_section_run_change_no_weight(base, tmp_path):
    changes = {
        name: str(value)
        for name, (value, _) in CHANGES.items()
        if name.startswith("run.") and name not in {"run.device", "run.threads"}
    }
    assert observe(override(BASE, changes), tmp_path)["weights"] == base["weights"]


@pytest.mark.parametrize("name", [name for name in preset_names() if name.startswith(("digits", "fashion"))])
def test_presets_of_one_image_set_see_as_many_images(name):
    """Equal compute, but for the control that stops early, a member's share, and for going on, a quarter.

    Those of the paper are in test_parity.py. A rival may take another network, or leave out the planted copies.
    """
    preset = load_preset(name)
    full = load_preset(f"{preset.data.name}{'-dit' if '-dit-' in name else ''}-iet-agc")
    share = full.method.members if name.endswith("early-stop") else 4 if "-finetune-" in name else 1
    assert preset.total_steps * preset.train.batch_size == full.total_steps * full.train.batch_size // share
    assert preset.data == (full.data.without_copies() if name.endswith("-deduplicated") else full.data)
    own = {"dropout", "channels"} if name.endswith(("-dropout", "-small-network", "-dp")) else set()
    assert preset.model.model_dump(exclude=own) == full.model.model_dump(exclude=own)
    assert (preset.init.model == "") == ("-finetune-" in name)
