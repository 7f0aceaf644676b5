"""The demo at a thousandth of its size, and what it leaves behind."""

import json
import multiprocessing
import pickle
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest

from iet_agc.cli import demo as module
from iet_agc.cli import summary
from iet_agc.cli.demo import PRESETS, demo
from iet_agc.runtime.workers import in_workers

SMALL = {
    "train.steps": "6",
    "method.rounds": "1",
    "train.batch_size": "8",
    "model.channels": "8",
    "model.groups": "4",
    "sample.num": "64",
    "sample.steps": "2",
    "run.preview_images": "4",
    "run.device": "cpu",
}


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """By forked workers; tests/test_bench.py spawns some, which are sent what they do."""
    folder, honest = tmp_path_factory.mktemp("demo"), multiprocessing.get_context

    def sent(function, tasks, *given):
        return in_workers(*pickle.loads(pickle.dumps((function, tasks))), *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "in_workers", sent)
        patch.setattr(multiprocessing, "get_context", lambda method=None: honest("fork"))
        return folder, demo(folder, overrides=SMALL)


def test_the_demo_says_what_the_contract_says(result):
    folder, said = result
    assert set(said) == {"presets", "report", "seconds"}
    assert list(said["presets"]) == list(PRESETS) == ["digits-default", "digits-iet-agc"]
    json.dumps(said)
    for name, audit in said["presets"].items():
        assert {
            "num_samples",
            "num_train",
            "num_train_unique",
            "conventions",
            "mq",
            "held_out",
            "calibrated",
            "quality",
        } <= set(audit)
        assert (audit["num_samples"], audit["num_train"], audit["num_train_unique"]) == (64, 2080, 1300)
        assert audit["num_held_out"] + audit["num_held_out_in_train"] == 497
        assert (folder / name / "previews" / "round-0001.png").exists()


def test_the_report_is_one_page_with_pictures(result):
    page = Path(result[1]["report"]).read_text()
    HTMLParser().feed(page)
    assert "digits-default" in page
    assert "digits-iet-agc" in page
    assert "data:image/png;base64," in page
    assert 'src="http' not in page


def test_the_table_has_a_row_for_each_preset(result):
    lines = [line for line in summary.demo(result[1], 100)[2:] if "%" in line or "Fréchet" in line]
    assert [line.split()[0] for line in lines[1:]] == list(PRESETS)
    assert len({len(line) for line in lines}) == 1


@pytest.mark.usefixtures("forked_workers")
def test_a_second_demo_in_the_same_folder_finds_all_done(result):
    folder, said = result
    again = demo(folder, overrides=SMALL)
    assert again["presets"] == said["presets"]


def test_a_run_is_a_pipeline_for_people_who_do_not_have_this_package(result):
    code = (
        "import sys\n"
        "from diffusers import DDIMPipeline\n"
        "for folder in sys.argv[1:]:\n"
        "    pipe = DDIMPipeline.from_pretrained(folder)\n"
        "    pipe.set_progress_bar_config(disable=True)\n"
        "    images = pipe(batch_size=2, num_inference_steps=2, output_type='np').images\n"
        "    assert images.shape == (2, 8, 8, 1), images.shape\n"
        "    config = pipe.scheduler.config\n"
        "    assert config.steps_offset == 1 and config.timestep_spacing == 'leading'\n"
        "assert not any(name.startswith('iet_agc') for name in sys.modules)\n"
    )
    folders = [result[0] / "digits-iet-agc" / kind for kind in ("raw", "ema")]
    done = subprocess.run([sys.executable, "-c", code, *folders], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.usefixtures("forked_workers")
def test_a_demo_that_fails_says_so_before_the_other_preset_is_done(tmp_path):
    """IET-AGC asks for more shards than images; default training has hours before it."""
    from iet_agc.config.overrides import customized as honest

    def spoil(settings, changes):
        changed = honest(settings, changes)
        members = {"method.members": "2081"} if settings.name == "digits-iet-agc" else {"train.steps": "100000"}
        return honest(changed, members)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "customized", spoil)
        bystander = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,))
        bystander.start()
        with pytest.raises(ValueError, match="cannot cut 2080 images into 2081 shards"):
            demo(tmp_path, overrides=SMALL)
    assert bystander.is_alive()  # a child of the caller's own is none of the demo's business
    bystander.kill()
    assert not (tmp_path / "digits-default" / "raw").exists()
