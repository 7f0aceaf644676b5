"""The command line as a person meets it: real processes, exit codes, one line for each mistake."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from iet_agc import __version__, cli
from iet_agc.auditing.sources import load_part
from iet_agc.diffusion.process import make_scheduler
from iet_agc.diffusion.unet import build_unet, save_pipeline
from tests.audit_folders import write_audit
from tests.commands import SETTINGS, call, run, run_in


def test_the_options_are_these(capsys):
    """Frozen: things outside the project call them."""
    expected = {
        "demo": {"--out"},
        "init": {"--out", "--held-out", "--method", "--size", "--device", "--orient", "--background", "--on-bad"},
        "pipeline": {"--out", "--steps", "--seed"},
        "train": {"--out", "--init"},
        "sample": {
            "--out", "--num-images", "--num", "--steps", "--weights", "--first-seed", "--format", "--device",
            "--guard", "--held-out", "--flips", "--amg", "--amg-strength",
            "--class", "--precision", "--prompt", "--prompts", "--guidance",
            "--scheduler", "--random-tokens", "--random-numbers", "--repeat-words", "--embedding-noise",
        },
        "audit": {
            "--train", "--samples", "--held-out", "--out", "--flips", "--extractor",
            "--convert-to", "--memory", "--cache", "--device", "--fail-above", "--clip", "--download",
            "--orient", "--background", "--on-bad", "--resize", "--crop", "--no-quality", "--groups", "--transformed",
        },
        "detect": {
            "--prompts", "--prompt", "--planted", "--memorized", "--seeds", "--steps", "--first-steps", "--guidance",
            "--weights", "--out", "--device",
        },
        "duplicates": {
            "--out", "--exact", "--no-flips", "--convert-to", "--keep-list", "--pairs", "--fail-above",
            "--orient", "--background", "--on-bad", "--resize", "--crop",
        },
        "check": {"--fail-above"},
        "curve": {"--out", "--num-images", "--num", "--steps", "--device"},
        "membership": {"--train", "--held-out", "--out", "--num-images", "--num", "--draws", "--weights", "--device"},
        "attack": {"--train", "--held-out", "--out", "--budget", "--steps", "--weights", "--device"},
        "report": {"--out"},
        "compare": {"--out"},
        "bench": {"--out", "--jobs"},
        "card": {"--audit", "--out"},
        "pack": {"--attack", "--out"},
        "verify": {"--train", "--samples", "--held-out", "--extractor", "--digest"},
        "shards": {"--members", "--out", "--seed", "--keep-together", "--lists-only", "--on-bad"},
        "average": {"--out", "--weights", "--shards", "--lora"},
        "presets": set(),
        "completion": set(),
    }  # fmt: skip
    for verb in expected.keys() - {"completion"}:
        expected[verb].add("--json")
    for verb in expected.keys() - {"check", "report", "compare", "card", "pack", "presets", "completion"}:
        expected[verb].add("--quiet")
    verbs: Any = cli._parser()._subparsers._group_actions[0].choices
    found = {
        name: {option for action in verb._actions for option in action.option_strings} for name, verb in verbs.items()
    }
    assert {name: options - {"-h", "--help"} for name, options in found.items()} == expected


def test_train_help_shows_every_setting_with_its_value(capsys):
    from iet_agc.config.presets import load_preset
    from iet_agc.config.settings import documented

    status, out, _ = call(capsys, "train", "digits-iet-agc", "--help")
    assert status == 0
    words = " ".join(out.split())
    for name, _, meaning in documented(load_preset("digits-iet-agc")):
        assert name in {"name", "description"} or f"--{name} " in out
        assert name in {"name", "description"} or meaning in words
    assert "--method.skip_below 0.5" in out or "--method.skip_below 0.75" in out


def test_presets_are_listed_with_their_meaning(capsys):
    status, out, _ = call(capsys, "presets")
    presets = json.loads(out)
    assert status == 0
    methods = {"default", "iet", "agc", "iet-agc", "early-stop", "large-batch", "random-skip"}
    further = {"finetune-default", "finetune-iet-agc", "gap", "gap-dummy", "u-shaped", "soup", "deduplicated"}
    cheap = {"min-snr", "large-learning-rate", "weight-decay", "dropout", "small-network", "dp"}
    found = {name.removeprefix("digits-") for name in presets if name.startswith("digits-")}
    transformer = {"dit-default", "dit-agc", "dit-iet-agc"}
    assert found == methods | further | cheap | transformer | {"ambient", "smoothed", "iet-agc-exchange"}
    assert {name.removeprefix("fashion-mnist-") for name in presets if name.startswith("fashion")} == methods | further
    assert all(presets.values())


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["train"], "train needs a PRESET; 'iet-agc presets' lists them"),
        (["train", "digits-default"], "train needs --out RUN, the folder of the run"),
        (["train", "digits-iet-agd", "--out", "x"], "unknown preset 'digits-iet-agd'; did you mean 'digits-iet-agc'?"),
        (
            ["train", "digits-agc", "--out", "x", "--train.stepz", "3"],
            "unknown setting 'train.stepz'; did you mean 'train.steps'?",
        ),
        (["train", "digits-agc", "--out", "x", "--method.steps", "3"], "did you mean 'train.steps'?"),
        (
            ["train", "digits-agc", "--out", "x", "--description", "a\udcff"],
            "setting description 'a\\udcff' is not UTF-8: write it so, and name files and folders so",
        ),
        (["train", "digits-agc", "--out", "x", "--train.steps"], "setting 'train.steps' has no value"),
        (
            ["train", "digits-default", "--out", "x", "--data.name", "folder", "--data.root", "photos"],
            "digits-default plants 20 of its own images 40 times each, and data.name folder is another image set: set "
            "data.planted_images, 0 plants none of it and 20 as many",
        ),
        (["train", "digits-agc", "--out", "x", "surplus"], "unexpected argument 'surplus'"),
        (
            ["train", "digits-agc", "--out", "x", "--train.steps", "many"],
            "setting train.steps: input should be a valid integer",
        ),
        (
            ["train", "digits-agc", "--out", "x", "--train.ema_decay=2"],
            "setting train.ema_decay: input should be less than or",
        ),
        (
            ["train", "digits-agc", "--out", "x", "--data.num_train", "9999"],
            "data.num_train 9999 is not between 1 and the 1797 images",
        ),
        (["train", "digits-agc", "--out", "x", "--method.members", "9999"], "cannot cut 2080 images into 9999 shards"),
        (
            ["train", "digits-agc", "--out", "x", "--model.multipliers", "1,2,2,2,2"],
            "images of 8 px cannot be halved 4 times",
        ),
        (
            ["train", "digits-agc", "--out", "x", "--model.groups", "7"],
            "model.groups 7 does not divide the model's width 24",
        ),
        (
            ["train", "digits-agc", "--out", "x", "--data.name", "folder", "--data.planted_images", "0"],
            "data.name is 'folder', but data.root does not say which",
        ),
        (
            ["train", "digits-finetune-iet-agc", "--out", "x"],
            "this preset trains a model further: say which (--init)",
        ),
        (
            ["train", "digits-default", "--out", "x", "--init", "no where"],
            "no where is no run, no folder and no hub id such as google/ddpm-cifar10-32",
        ),
        (["train", "digits-default", "--out", "x", "--init"], "argument --init: expected one argument"),
        (
            ["train", "digits-agc", "--out", "x", "--model.classes", "9"],
            "digits has classes 0 to 9, model.classes 9 allows 0 to 8: set it to 10",
        ),
        (
            ["train", "digits-agc", "--out", "x", "--model.classes", "11"],
            "digits has no image of class 10, and model.c",
        ),
        (
            ["train", "digits-agc", "--out", "x", "--model.classes", "ten"],
            "setting model.classes: input should be a valid",
        ),
        (["sample", "nowhere", "--out", "y", "--class", "cat"], "argument --class: invalid int value: 'cat'"),
        (["sample", "nowhere", "--out", "y"], "nowhere is not a diffusers pipeline: it has no model_index.json"),
        (["sample", "nowhere", "--out", "y", "--xyzzy"], "unknown option '--xyzzy'; see 'iet-agc sample --help'"),
        (["sample", "nowhere", "--out", "y", "--wieghts", "raw"], "'--wieghts'; did you mean '--weights'?"),
        (["audit", "--trian=x"], "unknown option '--trian'; did you mean '--train'?; see 'iet-agc audit --help'"),
        (["train", "digits-agc", "--otu", "x"], "unknown option '--otu'; did you mean '--out'?"),
        (["report", "nowhere", "surplus", "--", "--frob"], "nowhere/audit.json is not there: give a folder that"),
        (["sample", "nowhere"], "the following arguments are required: --out"),
        (["audit", "--train", "digits", "--samples", "nowhere", "--out", "a"], "nowhere is not a folder of images"),
        (["audit", "--train", "nowhere", "--samples", "digits", "--out", "a"], "nowhere is not a folder of images"),
        (
            ["audit", "--train", "digits", "--samples", "digits", "--out", "a", "--convert-to", "8x8"],
            "argument --convert-to: '8x8' is not CxHxW with 1 or 3 channels, such as 3x64x64",
        ),
        (
            ["audit", "--train", "digits", "--samples", "digits", "--out", "a", "--memory", "0"],
            "argument --memory: '0' is not a number of GiB above 0",
        ),
        (
            ["audit", "--train", "digits", "--samples", "digits", "--out", "a", "--memory", "much"],
            "argument --memory: 'much' is not a number of GiB above 0",
        ),
        (
            ["audit", "--train", "digits", "--samples", "digits", "--out", "a", "--fail-above", "2"],
            "argument --fail-above: '2' is not a share from 0 to 1",
        ),
        (
            ["audit", "--train", "digits", "--samples", "digits", "--out", "a", "--fail-above", "0.02"],
            "--fail-above needs a calibrated cut: give real images that were not trained on, --held-out Z",
        ),
        (
            ["audit", "--train", "digits", "--samples", "digits", "--out", "a", "--extractor", "sscd.pt"],
            "there is no file sscd.pt: give the path of a TorchScript file, such as SSCD's",
        ),
        (
            ["audit", "--train", "digits", "--samples", "digits", "--out", "a", "--extractor", "resnet"],
            "unknown extractor 'resnet': use the path of a TorchScript or ONNX file, or one of pixels, efficientnet",
        ),
        (["sample", "nowhere", "--out", "y", "--flips"], "--flips are those of a guard: give --guard TRAIN as well"),
        (
            ["sample", "nowhere", "--out", "y", "--amg-strength", "3"],
            "--amg-strength has no effect alone: give --amg TRAIN",
        ),
        (["sample", "nowhere", "--out", "y", "--guard", "nowhere", "--held-out", "digits"], "nowhere is not a folder"),
        (["curve", "nowhere"], "nowhere is not a run: it has no config.json"),
        (["curve", "nowhere", "--steps", "5"], "--steps are of the images that are drawn: give --num-images N as well"),
        (["duplicates", "nowhere", "--out", "d"], "nowhere is not a folder of images, nor an .npz, .npy, .tar or"),
        (["duplicates", "digits"], "the following arguments are required: --out"),
        (
            ["duplicates", "digits", "--out", "d", "--fail-above", "2"],
            "argument --fail-above: '2' is not a share from 0 to 1",
        ),
        (["duplicates", "digits", "--out", "d", "--keep-list", "."], ". is a folder, and the list is one file"),
        (["report", "nowhere"], "nowhere"),
        (["compare", "nowhere"], "nowhere is not a run: it has no config.json"),
        (["bench", "smal", "--out", "b"], "unknown board 'smal'; did you mean 'small'?"),
        (["bench", "small", "--out", "b", "--jobs", "0"], "jobs 0: give 1 or more (--jobs)"),
        (["dance"], "unknown verb 'dance'; 'iet-agc --help' lists them"),
        (["trian"], "unknown verb 'trian'; did you mean 'train'?"),
        (["audit"], "the following arguments are required: --train, --samples, --out"),
    ],
)
def test_a_mistake_gets_one_line_and_status_2_and_leaves_nothing(arguments, line, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, err = call(capsys, *arguments)
    assert (status, out) == (2, "")
    assert line in err
    assert len(err.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_guard_needs_real_images(capsys, tmp_path, pipeline):
    status, _, err = call(capsys, "sample", pipeline, "--out", tmp_path / "y", "--guard", "digits")
    assert status == 2
    assert "give held-out images (--held-out)" in err


def test_no_words_print_help_and_did_nothing(capsys):
    status, out, err = call(capsys)
    assert (status, out) == (2, "")
    assert err.startswith("usage: iet-agc")
    assert call(capsys, "--version")[:2] == (0, f"iet-agc {__version__}\n")


def test_quiet_shows_no_progress_and_only_then(capsys, monkeypatch):
    from iet_agc.runtime import progress

    def work(parsed):
        with progress.progress_bar("work", 10, unit="image") as bar:
            bar.delay = 0
            bar.update(10)
        progress.say("warning: a word")
        return 0, {}

    monkeypatch.setattr(cli, "_demo", work)
    assert call(capsys, "demo", "--quiet")[2] == "warning: a word\n"
    assert call(capsys, "demo")[2].startswith("work: 100% (10/10 images)")


def test_a_log_names_round_member_and_phase_with_loss_and_skip_rate(capsys, monkeypatch, tmp_path):
    from iet_agc.runtime import progress

    monkeypatch.setattr(progress, "_DELAY", 0)
    run = tmp_path / "run"
    _, _, err = call(capsys, "train", "digits-iet-agc", "--out", run, *SETTINGS, "--run.log_every", "1")
    assert re.search(r"^train round 1/2 member 2/4: 20% \(5/24 steps\) in .* left, loss [\d.]+, skip 0\.0%$", err, re.M)
    assert re.search(r"^train round 2/2 member 4/4: 100% \(24/24 steps\) in", err, re.M)
    assert re.search(r"^export: \d\d:\d\d$", err, re.M)
    _, _, err = call(capsys, "sample", run, "--out", run / "samples")
    assert re.search(r"^sample: 100% \(60/60 images\) in", err, re.M)
    sources = ("--train", run, "--samples", run / "samples", "--held-out", run)
    _, _, err = call(capsys, "audit", *sources, "--out", tmp_path / "a", "--extractor", "pixels")
    assert re.search(r"^read: \d+ images in", err, re.M)
    assert re.search(r"^audit: pixels-\w+.*: \d+% in", err, re.M)


def test_a_folder_with_other_things_is_left_alone(capsys, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    for arguments in (
        ["train", "digits-default", "--out", tmp_path],
        ["audit", "--train", "digits", "--samples", "digits", "--out", tmp_path],
        ["duplicates", "digits", "--out", tmp_path],
    ):
        status, _, err = call(capsys, *arguments)
        assert status == 2
        assert f"{tmp_path} is not empty and holds no" in err
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("arguments", "kept"),
    [
        (["train", "digits-default", "--out", "a"], "no member was in training; bundles are kept"),
        (["sample", "run", "--out", "a"], "the parts that are finished are kept"),
        (["curve", "run"], "the parts that are finished are kept"),
        (["audit", "--train", "x", "--samples", "y", "--out", "a"], "the parts that are finished are kept"),
        (["detect", "run", "--out", "a"], "the parts that are finished are kept"),
        (["attack", "run", "--out", "a"], "the parts that are finished are kept"),
        (["membership", "run", "--out", "a"], "the parts that are finished are kept"),
        (["demo"], "bundles and finished parts are kept"),
        (["init", "photos"], "the same command starts from the beginning"),
        (["pipeline", "emoji-text-default", "--out", "a"], "the same command starts from the beginning"),
        (["duplicates", "digits", "--out", "a"], "the same command starts from the beginning"),
        (["report", "a"], "the same command starts from the beginning"),
        (["compare", "a"], "the same command starts from the beginning"),
        (["bench", "small", "--out", "a"], "bundles and finished parts are kept"),
    ],
)
def test_a_verb_that_is_stopped_says_what_it_kept(capsys, monkeypatch, arguments, kept):
    """All once said "the same command goes on from here"."""

    def stop(parsed):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, f"_{arguments[0]}", stop)
    status, out, err = call(capsys, *arguments)
    assert (status, out) == (130, "")
    assert re.fullmatch(rf"iet-agc: stopped.*{kept}.*\n", err)


def test_broken_training_exits_1_and_says_where(capsys, tmp_path):
    status, out, err = call(
        capsys, "train", "digits-default", "--out", tmp_path / "run", *SETTINGS, "--train.learning_rate", "1e30"
    )
    assert (status, out) == (1, "")
    assert "loss or gradient is not finite: member 0, round 0, step " in err.splitlines()[-1]


def test_train_sample_audit_report_compare(capsys, tmp_path):
    """The whole chain, with only JSON on stdout; then the audit of a plain file."""

    def result(*arguments):
        status, out, _ = call(capsys, *arguments)
        assert status == 0
        return json.loads(out)

    runs = [tmp_path / "digits-0", tmp_path / "digits-1"]
    for seed, folder in enumerate(runs):
        trained = result("train", "digits-iet-agc", "--out", folder, *SETTINGS, "--train.seed", seed)
        assert trained["images_seen"] == 4 * 2 * 3 * 8
        assert trained["training_images"] == 216
    samples = runs[0] / "samples"
    assert result("sample", runs[0], "--out", samples, "--num", "60")["num"] == 60
    assert result("sample", runs[0], "--out", samples, "--num", "60")["num"] == 60
    _, _, err = call(capsys, "sample", runs[0], "--out", samples, "--num", "70")
    assert "holds another sample set (num is 60, not 70)" in err

    sources = ("--train", runs[0], "--held-out", runs[0])
    audit = result("audit", *sources, "--samples", samples, "--out", runs[0] / "audit")
    assert (audit["num_samples"], audit["num_train"], audit["num_train_unique"]) == (60, 216, 200)
    written = json.loads((runs[0] / "audit" / "audit.json").read_text())
    del written["seal"]  # that of the file
    assert written == audit | {"names": {"train": str(runs[0]), "samples": str(samples), "held_out": str(runs[0])}}
    assert "<html" in Path(result("report", runs[0] / "audit")["report"]).read_text()

    np.save(tmp_path / "plain.npy", np.load(samples / "samples.npz")["images"])
    assert result("audit", *sources, "--samples", tmp_path / "plain.npy", "--out", tmp_path / "b") == audit

    assert list(result("compare", runs[0])["presets"]) == ["digits-iet-agc"]
    assert "is not audited" in call(capsys, "compare", *runs)[2]


def test_a_build_fails_by_an_audit_and_a_guard_mends_it(capsys, tmp_path):
    """Samples of a run that are copies of its training images: status 1, with the JSON and one line."""
    run = tmp_path / "run"
    assert call(capsys, "train", "digits-iet-agc", "--out", run, *SETTINGS, "--train.steps", "1")[0] == 0
    copies = load_part(str(run), "train")[0].images[:40]
    np.save(tmp_path / "copies.npy", copies.numpy())
    sources = ("audit", "--train", run, "--held-out", run, "--memory", "0.01")
    status, out, err = call(
        capsys, *sources, "--samples", tmp_path / "copies.npy", "--out", tmp_path / "a", "--fail-above", "0.5"
    )
    assert status == 1
    assert json.loads(out)["calibrated"]["count"] == 40
    line = "iet-agc: check failed: 40 of 40 samples are below the calibrated cut (100%; at least 91.2% by the draws of"
    assert line in err
    assert ", more than 50%; it fails in at most 2.5% of draws" in err

    drawn = ("sample", run, "--out", tmp_path / "guarded", "--num", "30", "--guard", run)
    status, out, _ = call(capsys, *drawn)
    guard = json.loads(out)["guard"]
    assert status == 0
    assert guard["drawn"] == 30 + guard["turned_down"]
    status, out, _ = call(
        capsys, *sources, "--samples", tmp_path / "guarded", "--out", tmp_path / "b", "--fail-above", "0"
    )
    assert (status, json.loads(out)["calibrated"]["count"]) == (0, 0)
    assert json.loads(out)["calibrated"]["cut"] == guard["cut"]

    status, out, _ = call(capsys, "compare", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "compared")
    assert status == 0
    assert {Path(file).name for file in json.loads(out)["files"].values()} == {
        "comparison.html", "comparison.png", "comparison.csv", "comparison-means.csv",
    }  # fmt: skip
    difference = json.loads(out)["differences"]["b"]["calibrated"]
    assert difference["mean"] == 1
    assert "Newcombe" in difference["interval"]["method"]


def test_torchrun_is_the_same_run_on_more_processes(tmp_path):
    """Two real processes: one JSON on stdout, and the weights of a run in one process."""
    alone = run("train", "digits-iet-agc", "--out", tmp_path / "alone", *SETTINGS)
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "iet_agc"]
    command = [*launcher, "train", "digits-iet-agc", "--out", tmp_path / "two", *SETTINGS]
    two = subprocess.run([sys.executable, "-m", *map(str, command)], capture_output=True, text=True, check=False)
    assert (alone.returncode, two.returncode) == (0, 0), two.stderr
    assert json.loads(two.stdout)["images_seen"] == json.loads(alone.stdout)["images_seen"]
    weights = [
        (tmp_path / name / "raw/unet/diffusion_pytorch_model.safetensors").read_bytes() for name in ("alone", "two")
    ]
    assert weights[0] == weights[1]


def documented_commands(pattern):
    """What README and docs show to be typed, without the program: ["train", "digits-iet-agc", "--out", ...]."""
    root = Path(__file__).parent.parent
    for file in (root / "README.md", *sorted((root / "docs").glob("*.md"))):
        text = file.read_text(encoding="utf-8").replace("\\\n", " ")
        for found in re.finditer(pattern.replace("PROGRAM", "(?:iet-agc|torchrun .*-m iet_agc)"), text, re.MULTILINE):
            yield shlex.split(found[1], comments=True)


def through_torchrun(words):
    """What reaches the program when its words stand behind torchrun's; None where torchrun refuses them."""
    from torch.distributed.run import get_args_parser

    try:
        return get_args_parser().parse_args(["--nproc-per-node=2", "-m", "iet_agc", *words]).training_script_args
    except SystemExit:
        return None


def test_documented_commands_are_understood_behind_torchrun_too(capsys):
    """torchrun looks at the options of the program as well, and refuses what may be the beginning of two of its own."""
    lines = [*documented_commands(r"^ *PROGRAM ([a-z]+ .*)")]
    assert {words[0] for words in lines} >= {"train", "sample", "audit", "detect", "report", "compare", "pipeline"}
    for words in [*lines, *documented_commands("`PROGRAM ([a-z]+ [^`]*)`")]:
        assert through_torchrun(words) == words, capsys.readouterr().err
    for words in lines:
        parsed, rest = cli._parser().parse_known_args(words)
        assert parsed.verb in ("train", "pipeline") or not rest, words


def test_the_files_for_clusters_start_verbs_that_there_are(capsys):
    """torchrun and the program understand the examples in them; torchrun knows the options that they give."""
    from torch.distributed.run import get_args_parser

    folder = Path(__file__).parent.parent / "examples" / "cluster"
    for file in (folder / "slurm.sbatch", folder / "two_hosts.sh"):
        text = file.read_text(encoding="utf-8")
        subprocess.run(["bash", "-n", file], check=True)
        page = (folder.parents[1] / "docs" / "scale.md").read_text(encoding="utf-8")
        shown = re.sub(r"\\\n#", " ", f"{text}\n{page}")
        typed = rf"^(?:# +)?(?:sbatch|bash) examples/cluster/{re.escape(file.name)} (?:first-host )?(.*)$"
        commands = [shlex.split(found) for found in re.findall(typed, shown, re.MULTILINE)]
        assert [words[0] for words in commands].count("audit") == 2
        assert "train" in {words[0] for words in commands}
        for words in commands:
            assert through_torchrun(words) == words, capsys.readouterr().err
            parsed, rest = cli._parser().parse_known_args(words)
            assert parsed.verb == "train" or not rest, words
        (given,) = re.findall(r"torchrun \\\n(.*)-m iet_agc \"\$@\"\n", text, re.DOTALL)
        options = [word.replace('"', "").replace("$processes", "2") for word in given.replace("\\\n", " ").split()]
        options = [f"{option.split('=')[0]}=2" if "$" in option else option for option in options]
        started = get_args_parser().parse_args([*options, "-m", "iet_agc", "presets"])
        assert (started.nnodes, started.nproc_per_node, started.rdzv_backend) == ("2", "2", "c10d")
        assert started.module
        assert started.training_script == "iet_agc"


def test_every_option_has_a_name_that_torchrun_lets_through(capsys):
    """The name that help shows first. `--num` is the older name of one, and the reason for this test."""
    from iet_agc.config.presets import load_preset
    from iet_agc.config.settings import documented

    verbs: Any = cli._parser()._subparsers._group_actions[0].choices
    names = [action.option_strings for verb in verbs.values() for action in verb._actions if action.option_strings]
    names = [[name for name in each if name.startswith("--")] for each in names]
    names += [[f"--{name}"] for name, _, _ in documented(load_preset("digits-iet-agc"))]
    lost = {name for each in names for name in each if through_torchrun(["verb", name, "1"]) != ["verb", name, "1"]}
    assert not lost & {each[0] for each in names}
    assert lost <= {"--num"}


def test_the_verbs_that_torchrun_shares_and_those_it_does_not(tmp_path):
    """Two real processes: images drawn by both, an audit that fails by them, a list that one of them prints."""

    def two(*words):
        return run_in(2, *words)

    torch.manual_seed(0)
    save_pipeline(build_unet(8, 1, 8, (1, 2), 1, (), 0.0, 4), make_scheduler(), tmp_path / "model")
    drawn = two("sample", tmp_path / "model", "--num-images", 10, "--steps", 2, "--out", tmp_path / "s")
    assert (drawn.returncode, json.loads(drawn.stdout)["num"]) == (0, 10), drawn.stderr
    np.save(tmp_path / "real.npy", np.random.default_rng(0).integers(0, 256, (120, 1, 8, 8), np.uint8))
    sources = "audit", "--train", tmp_path / "s", "--samples", tmp_path / "s", "--held-out", tmp_path / "real.npy"
    failed = two(*sources, "--out", tmp_path / "a", "--extractor", "pixels", "--fail-above", "0.5")
    assert (failed.returncode, json.loads(failed.stdout)["calibrated"]["share"]) == (1, 1.0), failed.stderr
    assert failed.stderr.count("check failed") == 1
    assert list(json.loads(two("presets").stdout))
    assert "demo starts processes of its own: run it without torchrun" in two("demo", "--out", tmp_path / "d").stderr


def test_an_unfinished_run_cannot_be_sampled(capsys, tmp_path):
    call(capsys, "train", "digits-default", "--out", tmp_path / "run", *SETTINGS, "--train.learning_rate", "1e30")
    status, _, err = call(capsys, "sample", tmp_path / "run", "--out", tmp_path / "samples")
    assert status == 2
    assert "is not finished: run the same 'iet-agc train' again to finish it" in err
    assert not (tmp_path / "samples").exists()


def test_compare_says_on_stderr_what_does_not_compare(capsys, tmp_path):
    folders = [
        write_audit(tmp_path / name, train=count, spaces=(), record=False, pictures=4).path
        for name, count in (("a", 70), ("b", 71))
    ]
    status, out, err = call(capsys, "compare", *folders)
    told = [warning for warning in json.loads(out)["warnings"] if warning.startswith("The training set")]
    assert (status, len(told)) == (0, 1)
    assert f"iet-agc: warning: {told[0]}\n" in err
    assert "The training set" not in call(capsys, "compare", folders[0])[2]
