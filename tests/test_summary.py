"""Lines for people: pure functions of results, and what a terminal and a pipe get of them."""

import json
import os
import pty
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from iet_agc.cli import summary, terminal
from iet_agc.cli.completion import completion

TRAINED: Any = {
    "run": "my runs/a",
    "preset": "digits-iet-agc",
    "training_images": 2080,
    "held_out_images": 497,
    "steps": 1200,
    "images_seen": 153_600,
    "skip_rate": 0.031,
    "seconds": 130.4,
}
SHARE = {"count": 3, "share": 0.05, "ci95": [0.0105, 0.1392]}
AUDIT: Any = {
    "num_samples": 60,
    "mq": {"0.15": SHARE},
    "calibrated": {**SHARE, "cut": 0.1234, "false_alarm": 0.01},
    "gate": None,
    "train_copies": None,
    "groups": None,
    "transformed": None,
    "verdict": {"outcome": "undecided", "by": [], "reasons": []},
    "warnings": [],
    "quality": {
        "extractor": "pixels",
        "frechet_train": 12.5,
        "frechet_held_out": {"mean": 13.17231, "std": 0.1},
        "warnings": ["few"],
    },
}


def test_a_run_says_what_it_took_where_it_is_and_what_comes_next() -> None:
    assert summary.train(TRAINED) == [
        "Trained digits-iet-agc: 1,200 steps in 2 min 10 s",
        "  images seen       153,600, 3.1% of them skipped",
        "  training images   2,080, and 497 held out",
        "  run               my runs/a (previews in my runs/a/previews)",
        "next: iet-agc sample 'my runs/a' --out 'my runs/a/samples'",
    ]
    assert "skipped" not in "\n".join(summary.train(TRAINED | {"skip_rate": 0.0}))


def test_a_check_says_how_it_ended_by_which_way_and_why_it_cannot_tell() -> None:
    check: Any = {
        "space": None,
        "by": "ratio",
        "count": 30,
        "total": 128,
        "share": 0.234375,
        "least": 0.165,
        "failed": True,
    }
    other = check | {"space": "net.pt", "by": "similarity", "count": 0, "share": 0.0, "least": 0.0, "failed": False}
    gate: Any = {"fail_above": 0.05, "failed": True, "checks": [check, other]}
    assert summary.check(gate, "my audit") == [
        "Check failed: at least 16.5 %, and 5 % allowed, chance included",
        "  pixels            30 of 128, 23.4 %; at least 16.5 %",
        "  net.pt, similarity 0 of 128, 0 %; at least 0 %",
        "  audit             my audit",
        "next: iet-agc report 'my audit'",
    ]
    passed = summary.check(gate | {"failed": False, "checks": [other]}, "a")
    assert passed[0] == "Check passed: at least 0 %, and 5 % allowed, chance included"
    blind = summary.check(gate | {"checks": [other]}, "a", ["in pixels: too close"])
    assert blind[0] == "Check failed: cannot tell how much is copied"
    assert "  held-out          in pixels: too close" in blind


def test_a_watched_run_says_which_point_to_keep() -> None:
    trained: Any = {"preset": "p", "steps": 12, "seconds": 1, "skip_rate": 0, "images_seen": 96, "run": "r"}
    trained |= {"training_images": 40, "held_out_images": 9}
    assert not any("watch" in line for line in summary.train(trained))
    lines = summary.train(trained | {"recommendation": {"sentence": "Recommended: step 4. Copied after it"}})
    assert lines[3:5] == ["  watch             Recommended: step 4", "                    Copied after it"]
    stopped: Any = {"step": 8, "weights_of_step": 4}
    lines = summary.train(trained | {"recommendation": {"sentence": "A"}, "stopped": stopped})
    assert "  stopped           at step 8, as it copies; it leaves the weights of step 4" in lines


def test_a_curve_says_which_point_to_keep() -> None:
    files = {"html": "c/curve.html", "csv": "c/curve.csv", "json": "c/curve.json"}
    found: Any = {"points": 3, "measured": "measured while it trained", "files": files}
    assert summary.curve(found | {"recommendation": {"sentence": "Recommended: step 4. Copied after it"}}) == [
        "Recommended: step 4",
        "                    Copied after it",
        "  points            3, measured while it trained",
        "  curve             c/curve.html, curve.csv, curve.json",
    ]


def test_a_card_says_what_it_says_first() -> None:
    card: Any = {"card": "a/README.md", "run": "a", "outcomes": [], "verdict": "Not audited"}
    assert summary.card(card) == [
        "Model card written: not audited",
        "  card              a/README.md",
        "next: iet-agc card a --audit AUDIT, with an audit of its samples",
    ]
    assert summary.card(card | {"outcomes": ["copies"], "verdict": "Copies found"})[0].endswith("copies found")


@pytest.mark.parametrize(
    ("held_out", "expected"),
    [
        (True, "next: iet-agc audit --train a --samples a/samples --held-out a --out a/audit"),
        (False, "next: iet-agc audit --train a --samples a/samples --out a/audit"),
        (None, "next: iet-agc audit --train IMAGES --samples a/samples --held-out IMAGES --out a/audit"),
    ],
)
def test_samples_lead_to_an_audit_by_what_is_known(held_out: bool | None, expected: str) -> None:
    drawn: Any = {"samples": "a/samples", "num": 1, "first_seed": 0, "steps": 50, "seconds": 3.21}
    lines = summary.sample(drawn, "a", held_out)
    assert lines == ["1 image drawn in 3.2 s, 50 steps each", "  samples           a/samples", expected]


def test_samples_say_class_prompts_and_guard_where_there_are_any() -> None:
    drawn: Any = {"samples": "s", "num": 60, "first_seed": 7, "steps": 50, "seconds": 4000, "class": 3, "prompts": 2}
    drawn |= {"guidance": 7.5, "guard": {"turned_down": 4, "drawn": 64}}
    told = "\n".join(summary.sample(drawn, "a", None))
    for words in ("1 h 6 min", "first seed        7", "class             3", "2, guidance scale 7.5", "4 of 64 turned"):
        assert words in told


def test_an_audit_says_verdict_share_with_interval_quality_and_the_next_command() -> None:
    assert summary.audit(AUDIT, "a/audit", "Undecided") == [
        "Undecided",
        "  copied            5 %, 95 % interval 1.05 % to 13.9 % (3 of 60)",
        "                    distance ratio below 0.123, calibrated: 1 % by chance",
        "  Fréchet distance  13.17 to held-out, 12.5 to training images (pixels)",
        "  warnings          1, on the page and in audit.json",
        "  audit             a/audit (audit.json, samples.csv, training-images.csv)",
        "next: iet-agc report a/audit",
    ]


def test_an_audit_without_held_out_images_says_that_its_cut_is_not_calibrated() -> None:
    quality = AUDIT["quality"] | {"frechet_held_out": None}
    told = "\n".join(summary.audit(AUDIT | {"calibrated": None, "quality": quality}, "a", "Not calibrated"))
    assert "distance ratio below 0.15, not calibrated" in told
    assert "Fréchet distance  12.5 to training images (pixels)" in told


def test_an_audit_says_why_it_cannot_tell() -> None:
    cannot = {"outcome": "cannot_tell", "by": [], "reasons": ["held-out images are too close: give others"]}
    told = summary.audit(AUDIT | {"verdict": cannot}, "a", "Cannot tell")
    assert told[0] == "Cannot tell"
    assert "  held-out          held-out images are too close: give others" in told


def test_a_gate_says_its_lower_limit() -> None:
    gate = {"fail_above": 0.02, "failed": True, "checks": [{"least": 0.01}, {"least": 0.031}]}
    told = "\n".join(summary.audit(AUDIT | {"gate": gate}, "a", "Check failed"))
    assert "check             at least 3.1 %, and 2 % allowed, chance included" in told


def test_a_comparison_is_a_table_with_intervals_and_its_warnings_fit() -> None:
    mean = {"mean": 0.05, "ci95": [0.01, 0.1]}
    row: Any = {
        "runs": ["a", "b"],
        "copied": mean,
        "calibrated": None,
        "frechet_held_out": {"mean": 13.1, "ci95": None},
    }
    lines = summary.compare({"presets": {"digits-agc": row}, "warnings": ["few images " * 12]}, 80)
    assert lines[2] == "preset      runs        ratio < 0.15  calibrated  Fréchet, held-out"
    assert lines[3] == "digits-agc     2  5.0% [1.0%, 10.0%]           -               13.1"
    assert max(map(len, lines)) <= 80
    assert lines[5].startswith("warning: few images")
    written = summary.compare({"presets": {}, "warnings": [], "files": {"html": "c.html", "png": "c.png"}}, 80)
    assert written[-2:] == ["  written           c.html", "                    c.png"]


def test_other_verbs_say_their_result() -> None:
    assert "  page              a/report.html" in summary.report({"report": "a/report.html"})
    built = summary.pipeline({"steps": 2000, "train_db": 21.34, "held_out_db": 20.0}, "small", "emoji-text-default")
    assert built[1] == "  reconstruction    21.3 dB, of held-out images 20.0 dB"
    assert built[-1] == "next: iet-agc train emoji-text-default --init small --out RUN"
    rows = [{"prompt": f"a cat {'very ' * 40}", "magnitude": 1.25, "sd": None}]
    found: Any = {"num_prompts": 1, "seconds": 1, "separation": {"auc": 0.9}, "highest": rows, "detect": "d"}
    told = summary.detect(found, 80)
    assert "  AUC               0.900 (memorized against other prompts)" in told
    assert max(map(len, told)) == 80
    demo: Any = {"presets": {"digits-agc": AUDIT | {"quality": {"frechet_train": 1.0, "frechet_held_out": 2.0}}}}
    assert any("5.0% [1.1%, 13.9%]" in line for line in summary.demo(demo | {"seconds": 1, "report": "r"}, 80))


def test_shards_say_how_large_they_are_and_what_came_along() -> None:
    found: Any = {
        "out": "s", "num_images": 10, "num_classes": 2, "sizes": [4, 3, 3], "keep_together": "near", "groups": 1,
        "largest_group": 2, "left_out": 1, "folders": True, "captioned": 9, "left_behind": 1,
    }  # fmt: skip
    assert summary.shards(found) == [
        "10 images cut into 3 shards, 3 to 4 each",
        "  classes           2 subfolders",
        "  kept together     1 group of equal or near copies, the largest of 2",
        "  captions          of 9 images",
        "  left out          1, listed in s",
        "  not linked        1 other file",
        "  lists and links   s",
    ]
    plain = {"num_classes": 0, "sizes": [5, 5], "keep_together": None, "left_out": 0, "folders": False}
    assert summary.shards(found | plain | {"captioned": 0, "left_behind": 0}) == [
        "10 images cut into 2 shards, 5 each",
        "  lists             s",
    ]


def test_an_average_says_by_what_weights_and_which_mean_of_a_lora_it_is() -> None:
    found: Any = {
        "out": "m", "kind": "file", "models": ["a", "b"], "weights": [3.0, 1.5], "tensors": 1234, "equal_files": 0,
        "lora": "factors",
    }  # fmt: skip
    assert summary.average(found) == [
        "Mean of 2 models written: 1,234 tensors",
        "  weights           3, 1.5",
        "  LoRA              means of A and of B, not of their product",
        "  mean              m",
    ]
    assert "  LoRA              exact mean of the products B A, of a larger rank" in summary.average(
        found | {"lora": "exact"}
    )
    told = summary.average(found | {"lora": None, "equal_files": 3})
    assert told[2:] == ["  equal in all      3 files", "  mean              m"]


def test_duplicates_say_how_many_of_which_kind() -> None:
    found: Any = {
        "images": 1000,
        "redundant": {"count": 20, "share": 0.02},
        "groups": {"exact": 3, "near": 4},
        "near": True,
    }
    found |= {"largest_group": 9, "kept": 980, "keep_list": None, "gate": {"fail_above": 0.01, "failed": True}}
    lines = summary.duplicates(found, "d")
    assert lines[0] == "Check failed: 20 of 1,000 images repeat another one, 1 % allowed"
    assert "  groups            3 of equal images, 4 of near copies, the largest of 9" in lines
    assert terminal.coloured(lines)[0].startswith("\x1b[1;31m")
    assert summary.duplicates(found | {"gate": None}, "d")[0] == "20 of 1,000 images repeat another one"
    listed = summary.duplicates(found | {"keep_list": {"file": "keep.txt", "sha256": "ab"}}, "d")
    assert "  list of those     keep.txt" in listed


def test_presets_are_tables_by_image_set_that_fit() -> None:
    rows = [("digits", "digits-agc", "agc", "154k", "long " * 40), ("cifar10", "cifar10-agc", "agc", "51.2M", "short")]
    lines = summary.presets(rows, 60)
    assert max(map(len, lines[1:-1])) <= 60
    assert lines[2:4] == [
        "DIGITS      METHOD  SEEN  DESCRIPTION",
        "digits-agc  agc     154k  long long long long long long lon…",
    ]


def test_colour_marks_the_first_line_and_what_asks_for_something() -> None:
    assert terminal.coloured(["Undecided", "  copied", "next: x"]) == [
        "\x1b[1mUndecided\x1b[0m",
        "  copied",
        "\x1b[36mnext: x\x1b[0m",
    ]
    assert terminal.coloured(["Copies found"]) == ["\x1b[1;31mCopies found\x1b[0m"]


# A terminal and a pipe -------------------------------------------------------------------------------------


def on_a_terminal(*arguments: str, **environment: str) -> tuple[int, str]:
    """Exit status, and what a terminal of 80 columns gets on stdout."""
    main, other = pty.openpty()
    done = subprocess.Popen(
        [sys.executable, "-m", "iet_agc", *arguments],
        stdout=other,
        stderr=subprocess.PIPE,
        env={**os.environ, "COLUMNS": "80", "TERM": "xterm", **environment},
    )
    os.close(other)
    read = b""
    while True:
        try:
            piece = os.read(main, 65536)
        except OSError:  # how Linux says that the other end is closed
            break
        if not piece:
            break
        read += piece
    os.close(main)
    done.communicate()
    return done.returncode, read.decode().replace("\r\n", "\n")


def test_a_terminal_gets_lines_and_a_pipe_gets_json() -> None:
    status, told = on_a_terminal("presets", NO_COLOR="")
    assert status == 0
    assert told.startswith("\x1b[1m")
    plain = re.sub(r"\x1b\[[\d;]*m", "", told)
    assert on_a_terminal("presets", NO_COLOR="1") == (0, plain)
    assert "digits-iet-agc" in plain
    assert "{" not in plain
    piped = subprocess.run([sys.executable, "-m", "iet_agc", "presets"], capture_output=True, check=True).stdout
    asked = on_a_terminal("presets", "--json")[1]
    assert json.loads(asked) == json.loads(piped)
    assert {line.split()[0] for line in plain.splitlines() if "-" in line[:20]} >= json.loads(piped).keys()


def test_json_is_utf_8_unless_the_stream_is_not() -> None:
    code = "from argparse import Namespace; from iet_agc.cli.presentation import presented\n"
    code += "print(presented(Namespace(json=True), {'a': 'Fr\\u00e9chet'}))"
    for encoding, expected in (("utf-8", "Fréchet".encode()), ("ascii", b"Fr\\u00e9chet")):
        environment = os.environ | {"PYTHONIOENCODING": encoding}
        told = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True).stdout
        assert expected in told


# Completion ------------------------------------------------------------------------------------------------


@cache
def script_for_bash() -> str:
    command = [sys.executable, "-m", "iet_agc", "completion", "bash"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def completed(*words: str) -> set[str]:
    """What bash offers for the last of the words behind "iet-agc"."""
    typed = " ".join(f"'{word}'" for word in ("iet-agc", *words))
    asked = f'COMP_WORDS=({typed}); COMP_CWORD={len(words)}; _iet_agc; printf "%s\\n" "${{COMPREPLY[@]}}"'
    program = f"{script_for_bash()}\n{asked}"
    told = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True)
    assert told.stderr == ""
    return {*told.stdout.split()}


def test_bash_completes_verbs_options_choices_presets_and_settings() -> None:
    assert completed("a") == {"attack", "audit", "average"}
    assert completed("audit", "--fl") == {"--flips"}
    assert completed("sample", "run", "--weights", "") == {"raw", "ema"}
    assert completed("train", "digits-iet") == {"digits-iet", "digits-iet-agc", "digits-iet-agc-exchange"}
    assert completed("train", "digits-iet", "--train.st") == {"--train.steps"}
    assert completed("completion", "") == {"bash", "zsh"}
    assert completed("report", "") == set()  # paths, by the shell itself


@pytest.mark.skipif(shutil.which("zsh") is None, reason="no zsh here")
def test_zsh_takes_the_script(tmp_path: Path) -> None:
    (tmp_path / "script").write_text(completion("zsh", {}, ["x"], []))
    program = f"autoload -U compinit && compinit -u -d {tmp_path}/dump; source {tmp_path}/script"
    done = subprocess.run(["zsh", "-fc", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_copies_in_the_training_set_are_told_where_there_are_some() -> None:
    none = {"groups": 0, "images": 0, "largest": 0}
    for near in (none, None):
        lines = summary.audit(AUDIT | {"train_copies": {"exact": none, "near": near}}, "a", "Undecided")
        assert not any("training copies" in line for line in lines)
    some = {"exact": {"groups": 20, "images": 800, "largest": 40}, "near": {"groups": 1, "images": 3, "largest": 3}}
    told = summary.audit(AUDIT | {"train_copies": some}, "a", "Undecided")
    said = "20 groups of equal images, the largest of 40; 1 group of near copies, the largest of 3"
    assert f"  training copies   {said}" in told


def test_neighbours_that_are_groups_are_told() -> None:
    groups = {"num_groups": 1234, "crowded": {"train": {"share": 0.125}}}
    told = summary.audit(AUDIT | {"groups": groups}, "a", "Undecided")
    assert "  neighbours        1,234 groups of copies; 12.5 % in crowded neighbourhoods" in told
    told = summary.audit(AUDIT | {"groups": groups | {"crowded": None}}, "a", "Undecided")
    assert "  neighbours        1,234 groups of copies" in told


def test_transformed_copies_are_told() -> None:
    share = {"count": 30, "total": 100, "share": 0.3, "ci95": [0.2, 0.4]}
    joint = share | {"cut": -2.1, "false_alarm": 0.01}
    lines = summary.audit(AUDIT | {"transformed": {"calibrated": joint, "others": share}}, "audit", "verdict")
    assert any(
        "30 % copied as they are or transformed, 1 % by chance; 30 % not by distance ratio" in each for each in lines
    )
