"""Boards as people write them, and what their runs say together. Nothing is trained here."""

import csv
import io
import json
import re
import shutil
from pathlib import Path

import pytest
from pydantic import ValidationError

from iet_agc.config.board import board_names, load_board, plan
from iet_agc.config.settings import Settings
from iet_agc.reporting.board import (
    BoardRecord,
    Failure,
    board_record,
    csv_table,
    read_board,
    standing,
)
from iet_agc.reporting.board_page import board_page
from iet_agc.runtime.errors import UserError
from iet_agc.runtime.seal import write_sealed
from tests.boards import MINIATURE, board, record_of, result, written
from tests.pages import Page

# Files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", board_names())
def test_boards_of_the_package_have_runs_of_equal_budget(name):
    made = load_board(name)
    assert len(made.seeds) >= 3
    times = {arm.name: arm.times for arm in made.data}
    early = {each.name for each in made.method if each.knob and each.knob.setting == "budget"}
    cells = plan(made)
    assert len({cell.folder for cell in cells}) == len(cells)
    for cell in cells:
        share = float(str(cell.value)) if cell.method in early else 1
        assert cell.images_seen == pytest.approx(made.budget * times[cell.arm] * share, rel=0.02)


def test_what_follows_from_a_board(tmp_path):
    cells = plan(board(tmp_path))
    assert [cell.folder for cell in cells[::2]] == [
        "cells/digits/default/seed-0",
        "cells/digits/skip/0.1/seed-0",
        "cells/digits/skip/0.5/seed-0",
    ]
    chosen = cells[3].settings
    assert (chosen.train.steps, chosen.train.seed, chosen.method.random_skip) == (2, 1, 0.1)
    assert (chosen.sample.num, chosen.run.threads, chosen.name) == (30, 1, "digits-skip")


def test_what_comes_later_wins(tmp_path):
    text = MINIATURE + 'settings = { "train.learning_rate" = 0.5, "sample.weights" = "ema" }\n'
    text = text.replace(
        'preset = "digits-default"',
        'preset = "digits-default"\nsettings.train = { learning_rate = 0.25, grad_clip = 3 }',
    )
    cells = plan(board(tmp_path, text))
    assert [cell.settings.train.learning_rate for cell in cells[::2]] == [0.25, 0.5, 0.5]
    assert [cell.settings.train.grad_clip for cell in cells[::2]] == [3, 3, 3]
    assert [cell.settings.sample.weights for cell in cells[::2]] == ["raw", "ema", "ema"]


def test_steps_follow_from_members_rounds_batch_and_times(tmp_path):
    text = MINIATURE.replace("budget = 16", "budget = 64") + "settings.method = { members = 2, rounds = 2 }\n"
    text = text.replace('preset = "digits-default"', 'preset = "digits-default"\ntimes = 2')
    assert [cell.settings.train.steps for cell in plan(board(tmp_path, text))[::2]] == [16, 4, 4]


def test_the_budget_is_a_knob_as_well(tmp_path):
    text = MINIATURE.replace("budget = 16", "budget = 64") + '[[method]]\nname = "early"\n'
    text += 'knob = { setting = "budget", values = [0.25, 1.0] }\n'
    cells = plan(board(tmp_path, text))
    assert [(cell.folder, cell.images_seen) for cell in cells[-4::2]] == [
        ("cells/digits/early/0.25/seed-0", 16),
        ("cells/digits/early/1.0/seed-0", 64),
    ]


GUIDE = Path(__file__).parents[1] / "docs" / "guides" / "boards.md"


def test_the_guides_board_method_and_arms_are_what_they_say(tmp_path):
    board_, arms, method = re.findall(
        r"^```toml\n(.*?)^```", GUIDE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    written(tmp_path, method, "mine")
    cells = plan(board(tmp_path, f"{board_}\n{arms}"))
    assert [*dict.fromkeys(cell.arm for cell in cells)] == ["planted", "unique", "fashion-shifted", "emoji"]
    assert {cell.settings.train.learning_rate for cell in cells if cell.method == "mine"} == {2e-3, 4e-3}
    assert {cell.settings.data.planted_kind for cell in cells} == {"exact", "shifted"}


def test_a_method_is_one_file_and_one_line(tmp_path):
    written(tmp_path, "[settings]\nmodel.dropout = 0.5\n", "mine")
    made = board(tmp_path, MINIATURE.replace('methods = ["default"]', 'methods = ["default", "mine.toml"]'))
    assert [method.name for method in made.method] == ["default", "mine", "skip"]
    assert plan(made)[2].settings.model.dropout == 0.5


def test_a_method_may_be_for_some_arms_only(tmp_path):
    text = MINIATURE + 'arms = ["other"]\n[[data]]\nname = "other"\npreset = "digits-default"\n'
    assert [(c.arm, c.method) for c in plan(board(tmp_path, text))[::2]] == [
        *[("digits", "default"), ("other", "default"), ("other", "skip"), ("other", "skip")],
    ]


REFUSED = {
    "budgets = 3\n": "unknown key 'budgets'; did you mean 'budget'?",
    "seeds = []\n": "seeds: tuple should have at least 1 item after validation, not 0 (it is [])",
    "seeds = [1, 1]\n": "seeds 1, 1 repeat one",
    'seeds = ["1"]\n': "seeds.0: input should be a valid integer (it is '1')",
    "samples = 0\n": "samples: input should be greater than or equal to 1 (it is 0)",
    'baseline = "defalt"\n': "baseline 'defalt' is none of its methods; did you mean 'default'?",
    'baseline = "skip"\n': "baseline 'skip' is a curve over method.random_skip: give it one value",
    'methods = ["defalt"]\n': "unknown method 'defalt'; did you mean 'default'?; or give the path of a .toml file",
    "budget = 17\n": "arm digits, method default: 17 images are no whole number of steps of 8 images for 1 members in "
    "1 rounds: choose a budget that is a multiple of 8, or fewer rounds",
}
REPLACED = {
    ('"method.random_skip"', '"method.random_skp"'): "arm digits, method skip, method.random_skp 0.1: unknown setting "
    "'method.random_skp'; did you mean 'method.random_skip'?",
    ("[0.1, 0.5]", "[0.1, 2.0]"): "arm digits, method skip, method.random_skip 2.0: setting method.random_skip: input "
    "should be less than 1 (it is 2.0)",
    ("[0.1, 0.5]", "[0.1, 0.10]"): "method.0.knob: knob method.random_skip has a value twice: 0.1, 0.1",
    ("knob = {", "knobs = {"): "unknown key 'method.0.knobs'; did you mean 'knob'?",
    ("values =", "value ="): "unknown key 'method.0.knob.value'; did you mean 'values'?",
    (", values = [0.1, 0.5]", ""): "method.0.knob.values is missing: its values, in the order in which the curve goes",
    ('name = "digits"', 'name = "My Digits"'): "data.0.name: string should match pattern",
    ('preset = "digits-default"', 'preset = "digit-default"'): "arm digits, method default: unknown preset "
    "'digit-default'; did you mean 'digits-default'?",
    (
        "sample.steps = 2",
        "train.steps = 2",
    ): "train.steps is not set by a board, it follows from the budget: leave it out",
    ('setting = "method.random_skip"', 'setting = "budget"'): "arm digits, method skip, budget 0.1: 1.6 images are no "
    "whole number",
    ('name = "skip"', 'name = "default"'): "there are two method entries named 'default': name one differently",
}


def refusal(folder, text):
    with pytest.raises(UserError) as refused:
        plan(board(folder, text))
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("line", REFUSED)
def test_a_bad_line_is_refused_in_one_line(tmp_path, line):
    name = line.partition(" =")[0]
    kept = "".join(each for each in MINIATURE.splitlines(keepends=True) if not each.startswith(f"{name} ="))
    assert REFUSED[line] in refusal(tmp_path, line + kept)


@pytest.mark.parametrize("change", REPLACED)
def test_a_bad_entry_is_refused_in_one_line(tmp_path, change):
    assert REPLACED[change] in refusal(tmp_path, MINIATURE.replace(*change))


def test_other_files_are_refused_in_one_line(tmp_path):
    assert "is damaged" in refusal(tmp_path, "baseline = ")
    assert "is missing: the method that every other one is compared with" in refusal(tmp_path, "samples = 3")
    with pytest.raises(UserError, match="unknown board 'smal'; did you mean 'small'\\?"):
        load_board("smal")
    with pytest.raises(UserError, match="not there"):
        load_board(str(tmp_path / "missing.toml"))


def test_a_method_that_turns_what_it_sets_is_refused(tmp_path):
    text = MINIATURE + 'settings = { "method.random_skip" = 0.2 }\n'
    assert "its settings have method.random_skip, which its knob turns: leave it out" in refusal(tmp_path, text)


# Boards that extend others ----------------------------------------------------------------------------------


def test_a_board_takes_from_another_what_it_does_not_say(tmp_path, monkeypatch):
    (tmp_path / "shared").mkdir()
    written(tmp_path / "shared", "[settings]\nmodel.dropout = 0.5\n", "mine")
    written(tmp_path / "shared", 'extends = "digits-default"\n[train]\nlearning_rate = 0.5\n', "images")
    base = MINIATURE.replace('methods = ["default"]', 'methods = ["default", "mine.toml"]')
    written(tmp_path / "shared", base.replace('preset = "digits-default"', 'preset = "images.toml"'), "base")
    file = written(tmp_path, 'extends = "shared/base.toml"\nseeds = [7]\n[settings.train]\nwarmup_steps = 3\n')
    monkeypatch.chdir("/")  # files are beside the board that names them, wherever one stands
    extended, below = load_board(str(file)), load_board(str(tmp_path / "shared" / "base.toml"))
    changed = extended.model_dump(exclude={"name", "seeds", "settings"})
    assert changed == below.model_dump(exclude={"name", "seeds", "settings"})
    assert (extended.name, extended.seeds, below.seeds) == ("board", (7,), (0, 1))
    assert extended.settings["train"] == {"batch_size": 8, "warmup_steps": 3}
    assert extended.settings["model"] == below.settings["model"]
    assert [cell.settings.train.learning_rate for cell in plan(extended)] == [0.5] * 4


def test_lists_are_replaced(tmp_path):
    written(tmp_path, MINIATURE, "base")
    text = 'extends = "base.toml"\nmethods = ["default", "agc"]\n[[method]]\nname = "other"\n'
    assert [method.name for method in board(tmp_path, text).method] == ["default", "agc", "other"]
    extended = board(tmp_path, 'extends = "small"\nmethods = ["default"]\n')
    assert [method.name for method in extended.method] == ["default", "deduplicated"]
    assert extended.data == load_board("small").data


def test_the_board_of_all_methods_has_the_small_ones_data():
    small, rivals = load_board("small"), load_board("rivals")
    for name in ("baseline", "budget", "samples", "seeds", "settings", "data"):
        assert getattr(small, name) == getattr(rivals, name)
    assert {method.name for method in small.method} < {method.name for method in rivals.method}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('extends = "smal"', "extends 'smal', which is no board; did you mean 'small'?; a file is named by its path"),
        ('extends = "other.toml"', "other.toml is not there"),
        ('extends = "board.toml"', "extends 'board.toml', and so, by that, itself"),
        ("extends = 3", "extends '3', which is no board"),
        ('extends = "small"\nmethods = 3', "methods: input should be a valid"),
        ('extends = "small"\ndata = [3]', "data.0: input should be"),
        ('extends = "small"\ndata = [{name = "a", preset = 3}]', "data.0.preset: input should be a valid string"),
    ],
)
def test_what_cannot_be_extended_is_refused_in_one_line(tmp_path, text, told):
    message = refusal(tmp_path, text)
    assert told in message
    assert "board.toml" in message


# The record -------------------------------------------------------------------------------------------------

#: Of default (seeds 0, 1), skip 0.1 and skip 0.5: copied of 1,000, and distance.
NUMBERS = [(200, 1.0), (300, 1.2), (100, 0.5), (100, 0.9), (0, 2.0), (0, 2.4)]


def test_points_methods_and_differences_by_hand(tmp_path):
    (arm,) = record_of(board(tmp_path), NUMBERS).arms
    default, mild, strong = arm.points
    assert (default.copied.mean, default.held_out_distance.mean) == (0.25, pytest.approx(1.1))
    assert [point.on_front for point in arm.points] == [False, True, True]
    assert default.against is None
    assert mild.against.copied.mean == pytest.approx(-0.15)
    assert mild.against.held_out_distance.mean == pytest.approx(-0.4)
    assert mild.against.held_out_distance.ci95 == pytest.approx((-0.4 - 0.1 * 12.7062, -0.4 + 0.1 * 12.7062), rel=1e-4)
    assert (mild.against.images, mild.against.seconds) == (1, 1)
    assert arm.reference == pytest.approx((1.1 * 0.25, 1.1 * 2.2))
    right, top = arm.reference
    skip = ((0.1 - 0) * (top - 2.2) + (right - 0.1) * (top - 0.7)) / (right * top)
    assert {each.method: each.hypervolume for each in arm.methods} == {
        "default": pytest.approx((right - 0.25) * (top - 1.1) / (right * top)),
        "skip": pytest.approx(skip),
    }
    assert arm.noise["copied"].deviation == pytest.approx(0.0707107, rel=1e-5)
    assert strong.label == "skip 0.5"


def test_a_sure_difference_that_one_seed_makes_as_well_is_flagged(tmp_path):
    """Two seeds of the baseline lie 1 apart; the other method is better by 0.1 in both, nearly to the last digit."""
    numbers = [(200, 1.0), (200, 2.0), (200, 0.9), (200, 1.9001), (0, 0.1), (0, 0.2)]
    _, near, far = record_of(board(tmp_path), numbers).arms[0].points
    assert near.against.held_out_distance.is_sure
    assert near.against.hidden == ("held_out_distance",)
    assert far.against.copied.is_sure
    assert far.against.hidden == ()


def test_a_failed_run_is_told_and_its_point_rests_on_the_others(tmp_path):
    made = board(tmp_path)
    cells = plan(made)
    results = [result(cell, *each) for cell, each in zip(cells, NUMBERS, strict=True)]
    results = [Failure(**standing(cells[0]), reason="it broke"), *results[1:4]]
    results += [Failure(**standing(cell), reason="it broke") for cell in cells[4:]]
    record = board_record(made, results, {}, {})
    assert [point.seeds for point in record.arms[0].points] == [(1,), (0, 1)]
    assert record.arms[0].points[1].against.seeds == 1
    assert record.arms[0].points[1].against.held_out_distance.ci95 is None
    assert [failure.folder for failure in record.failures][:2] == [cells[0].folder, cells[4].folder]
    page = Page(board_page(record, tmp_path))
    assert "3 of 6 runs failed" in page.text
    assert "it broke" in page.text


def test_a_board_of_which_nothing_came_is_a_page_all_the_same(tmp_path):
    made = board(tmp_path)
    failures = [Failure(**standing(cell), reason="it broke") for cell in plan(made)]
    record = board_record(made, failures, {}, {})
    assert record.arms == ()
    assert "No run came to a result" in Page(board_page(record, tmp_path)).text


def test_an_arm_whose_baseline_failed_has_no_differences(tmp_path):
    made = board(tmp_path)
    results = [result(cell, 1, 1.0) for cell in plan(made)[2:]]
    record = board_record(made, results, {}, {})
    assert [point.against for point in record.arms[0].points] == [None, None]
    assert record.arms[0].noise == {}
    board_page(record, tmp_path)


def test_the_record_is_read_back_and_a_damaged_one_refused(tmp_path):
    record = record_of(board(tmp_path), NUMBERS)
    write_sealed(tmp_path / "board.json", record.model_dump(mode="json"))
    assert read_board(tmp_path) == record
    text = (tmp_path / "board.json").read_text()
    (tmp_path / "board.json").write_text(text.replace('"cut": 0.1', '"cut": 0.2', 1))
    with pytest.raises(UserError, match="is not as it was written"):
        read_board(tmp_path)
    (tmp_path / "board.json").write_text(text.replace('"version": 1', '"version": 9', 1))
    with pytest.raises(UserError, match="has version 9, this iet-agc reads 1"):
        read_board(tmp_path)
    shutil.rmtree(tmp_path)
    with pytest.raises(UserError, match="holds no finished board"):
        read_board(tmp_path)


def test_the_record_refuses_what_cannot_be(tmp_path):
    content = record_of(board(tmp_path), NUMBERS).model_dump(mode="json")
    content["arms"][0]["methods"][0]["hypervolume"] = 1.5
    with pytest.raises(ValidationError):
        BoardRecord.model_validate_json(json.dumps(content))


def test_the_table_has_a_row_for_each_run(tmp_path):
    rows = [*csv.DictReader(io.StringIO(csv_table(record_of(board(tmp_path), NUMBERS))))]
    assert [(row["method"], row["value"], row["seed"]) for row in rows[::3]] == [
        ("default", "", "0"),
        ("skip", "0.1", "1"),
    ]
    assert [float(row["copied"]) for row in rows] == [0.2, 0.3, 0.1, 0.1, 0, 0]
    assert float(rows[0]["copied_low"]) < 0.2 < float(rows[0]["copied_high"])
    assert rows[0]["verdict"] == "copies"


# The page ---------------------------------------------------------------------------------------------------


def test_the_page_says_what_is_claimed_and_what_not(tmp_path):
    page = Page(board_page(record_of(board(tmp_path), NUMBERS), tmp_path))
    assert "There are 2 seeds. No difference should be claimed from fewer than 3." in page.text
    assert "skip 0.5 (0 %, 2.200); skip 0.1 (10.0 %, 0.700)" in page.text.replace("\u00a0", " ")
    assert "the reference point, 27.5 % at 2.420" in page.text.replace("\u00a0", " ")
    assert "7.1 percentage points of copied share" in page.text


def test_three_seeds_are_no_warning(tmp_path):
    made = board(tmp_path, MINIATURE.replace("seeds = [0, 1]", "seeds = [0, 1, 2]"))
    numbers = [pair for pair in NUMBERS[::2] for pair in [pair, pair, pair]]
    page = Page(board_page(record_of(made, numbers), tmp_path))
    assert "Before you compare" not in page.text


def test_names_and_reasons_are_escaped(tmp_path):
    made = board(tmp_path, 'title = "<script>"\n' + MINIATURE)
    cells = plan(made)
    failure = Failure(**standing(cells[0]), reason="<img src=x>")
    text = board_page(board_record(made, [failure, *(result(c, 1, 1.0) for c in cells[1:])], {}, {}), tmp_path)
    assert "<img src=x>" not in text
    assert "&lt;img src=x&gt;" in text


def test_settings_of_a_board_are_settings():
    assert isinstance(plan(load_board("small"))[0].settings, Settings)
