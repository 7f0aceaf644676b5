"""Several audits side by side: who belongs together, which interval, and what does not compare."""

import json
import re
from typing import Any

import pytest
from scipy import stats

from iet_agc.auditing.schema import ManyNearCopies, NoCut
from iet_agc.config.overrides import override
from iet_agc.config.run_folder import claim_folder
from iet_agc.config.settings import Settings
from iet_agc.metrics.intervals import difference, mean, share, share_over_runs, wilson
from iet_agc.reporting import comparison
from iet_agc.reporting.audit_page import render
from iet_agc.reporting.comparison import COLUMNS, compare, differences_from_first, listed, table, warnings
from tests.compared_runs import (
    CONVENTIONS,
    HELD_OUT,
    SAMPLES,
    copies,
    numbers,
    other_samples,
    plain,
    quality,
    run,
    seeds,
    write,
)

# Who belongs together -------------------------------------------------------------------------------------


def test_runs_are_grouped_by_preset(tmp_path):
    runs = [
        run(tmp_path / "a", "x", numbers(200, 1.0)),
        run(tmp_path / "b", "y", numbers(100, 2.0)),
        run(tmp_path / "c", "x", numbers(400, 3.0)),
    ]
    rows = compare([runs[0], *runs])
    assert list(rows) == ["x", "y"]
    assert rows["x"].runs == (str(runs[0]), str(runs[2]))
    assert rows["x"]["copied"].values == (0.2, 0.4)
    assert rows["x"]["frechet_held_out"].mean == 2
    assert rows["y"]["calibrated"].values == (0.05,)
    lines = table(rows).splitlines()
    assert len(lines) == 4
    assert lines[2].startswith("| x | 2 | 30.0% (20.0%, 40.0%) [1.0%, 94.6%] | 30.0% (")
    assert lines[3].endswith("| 2.000 (2.000) | 1.000 (1.000) | 1.4% (1.4%) |")


def test_other_settings_are_another_experiment_but_another_seed_is_not(tmp_path):
    rows = compare(
        [
            run(tmp_path / "a", "x", numbers(200), train__seed="0"),
            run(tmp_path / "b", "x", numbers(100), train__seed="1"),
            run(tmp_path / "c", "x", numbers(10), train__seed="1", data__num_train="400"),
        ]
    )
    assert list(rows) == ["x", "x (data.num_train None is now 400)"]
    assert rows["x"].seeds == (0, 1)
    assert rows["x"]["copied"].values == (0.2, 0.1)


def test_an_audit_without_a_run_is_an_experiment_named_after_its_folder(tmp_path):
    rows = compare([write(tmp_path / "mine", numbers(100)), write(tmp_path / "theirs", numbers(200))])
    assert list(rows) == ["mine", "theirs"]
    assert rows["mine"].seeds == (None,)
    assert rows["theirs"]["copied"].values == (0.2,)


def test_names_of_audits_are_told_apart(tmp_path):
    """By their parents where folders are called the same, or as a preset is."""
    own = [write(tmp_path / name / "audit", numbers()) for name in ("one", "two")]
    assert list(compare(own)) == ["one/audit", "two/audit"]
    given = [run(tmp_path / "r", "x", numbers()), write(tmp_path / "sets" / "x", numbers(200))]
    assert list(compare(given)) == ["x", "sets/x"]


def test_an_audit_of_a_run_stands_for_the_run_and_counts_once(tmp_path, monkeypatch):
    folder = run(tmp_path / "r", "x", numbers(), train__seed="5")
    monkeypatch.chdir(tmp_path)
    rows = compare([folder / "audit", folder, tmp_path / "." / "r", folder.relative_to(tmp_path)])
    assert list(rows) == ["x"]
    assert rows["x"].runs == (str(folder),)
    assert rows["x"].seeds == (5,)


# Columns --------------------------------------------------------------------------------------------------


def test_columns_of_this_version(tmp_path):
    row = compare([write(tmp_path / "a", numbers())])["a"]
    means = {name: row[name].mean for name in COLUMNS if row[name]}
    assert means["d1_d2"] == 0.04
    assert means["auth_pct"] == 48
    assert means["near"] == 0.03
    assert means["c_t"] == -3.5
    assert (means["kid_held_out"], means["precision_held_out"], means["recall_held_out"]) == (0.002, 0.7, 0.6)
    assert (means["mifid_held_out"], means["mifid_train"]) == (2.5, 2.0)
    assert row["auth_pct"].interval.ci95 == pytest.approx([44.91, 51.10], abs=0.01)


def space(sha256, **changes):
    """What an audit has of the features of a network."""
    part = plain(share(20, SAMPLES))
    percentile = {"value": 0.45, "ci95": [0.4, 0.5]}
    similar = {"above": part, "p95": percentile, "mean": {"mean": 0.3, "ci95": None}}
    similarity = {"copy_detection": True, "num_calibrating": HELD_OUT, "threshold": 0.5, "samples": similar}
    similarity |= {"train": similar | {"above": plain(share(1, 200))}}
    similarity |= {"held_out": similar | {"above": plain(share(1, HELD_OUT))}}
    similarity |= {"calibrated": {"false_alarm": 0.01, "cut": 0.6, "num_held_out": HELD_OUT, **part}}
    found = plain(copies(100)) | {"sha256": sha256, "dimensions": 512, "quality": quality()}
    return found | {"similarity": similarity, "alignment": None} | changes


def told(sha256, score):
    """What an audit of samples with prompts has besides, in the features of two networks."""
    part, percentile = plain(share(20, SAMPLES)), {"mean": 0.8, "ci95": [0.7, 0.9]}
    alignment = {"num_samples": SAMPLES, "num_captions": 24, "percentile": percentile, "reciprocal_rank": percentile}
    alignment |= {"top1": part, "top10": part, "chance": {"percentile": 0.5, "top1": 0.1, "top10": 0.4}}
    first = space(sha256, alignment={"train": alignment, "held_out": None})
    clip = {"model": "clip", "sha256": "c" * 64, "num_prompts": 24, "num_cut_off": 0, "other_prompts": None}
    clip |= {"score": {"mean": score, "ci95": [score - 1, score + 1]}}
    return {"feature_spaces": {"sscd.pt": first, "other": space(sha256)}, "clip": clip}


def test_columns_of_samples_with_prompts_are_those_of_the_first_network(tmp_path):
    one, two = (write(tmp_path / name, numbers() | told(name * 64, 25.5)) for name in "ab")
    rows = compare([one, two])
    names = ("similar", "similar_above", "similar_p95", "aligned", "clip_score")
    assert [rows["a"][name].mean for name in names] == [0.02, 0.02, 0.45, 0.8, 25.5]
    assert rows["a"]["aligned_held_out"] is None
    said = [line for line in warnings(rows) if line.startswith("The network of similarities differs")]
    assert len(said) == 1
    assert said[0].endswith("similarities and alignment do not compare.")
    rows = compare([write(tmp_path / "c", numbers())])
    assert rows["c"]["similar"] is rows["c"]["clip_score"] is None


def test_what_an_audit_does_not_know_stays_empty_and_no_more(tmp_path):
    row = compare([write(tmp_path / "a", numbers(200, calibrated=False))])["a"]
    assert row["calibrated"] is row["similar"] is row["clip_score"] is None
    assert row["frechet_held_out"].mean == 1
    row = compare([write(tmp_path / "b", numbers(200, calibrated=False, held_out=False))])["b"]
    assert row["frechet_held_out"] is row["held_out_copied"] is row["kid_held_out"] is row["c_t"] is None
    assert "| - | - | 0.500 (0.500) | - |" in table({"x": row})


def test_a_column_that_one_run_does_not_know_is_empty(tmp_path):
    """A mean over fewer runs than the others would be of something else."""
    runs = [
        run(tmp_path / "a", "x", numbers(), train__seed="0"),
        run(tmp_path / "b", "x", numbers(held_out=False, calibrated=False), train__seed="1"),
    ]
    row = compare(runs)["x"]
    assert row["near"] is row["calibrated"] is None
    assert row["copied"].mean == pytest.approx(0.1)


def changed(**changes):
    """An audit with one share changed."""
    return numbers(mq=numbers()["mq"] | {"0.15": plain(share(100, SAMPLES)) | changes})


DAMAGED = {
    "it is not JSON": "{",
    "it is nested too deeply": "[" * 100_000,
    "has version None, this iet-agc reads 2": "{}",
    "it holds no JSON object": "[]",
    "has version 1, this iet-agc reads 2": '{"version": 1}',
    "num_samples: Field required": '{"version": 2, "mq": 3}',
    "mq.0.15.share: Input should be a valid number, not '0.1'": changed(share="0.1"),
    "a share is -7.5, and its count is 100 of 1000": changed(share=-7.5),
    "its count is 1001 of 1000": changed(count=1001, share=1.001),
    "has the interval from 0.2 to 0.3": changed(ci95=[0.2, 0.3]),
    "has the interval from -0.1 to 0.3": changed(ci95=[-0.1, 0.3]),
    "clusters: Input should be greater than or equal to 1, not 0": changed(clusters=0, design_effect=1.0),
    "design_effect: Input should be greater than or equal to 1, not 0.5": changed(clusters=9, design_effect=0.5),
    "a share has 9 clusters, the design effect None": changed(clusters=9),
    "an interval from 0.3 to 0.05": changed(ci95=[0.3, 0.05]),
    "mq.0.15.count: Input should be a valid integer, not True": changed(count=True),
    "its cuts are 0.15, not 0.15, 0.20": numbers(mq={"0.15": plain(share(100, SAMPLES))}),
    "NaN stands where a number belongs": numbers(distance=float("nan")),
    "1e999 is no finite number": json.dumps(numbers(distance=3.25)).replace("1.625", "1e999"),
    "is beyond 64 bits": json.dumps(numbers()).replace("300", "3" * 5000),
    "a share is of 1000 samples, and there are 50": numbers(num_samples=50),
    "a share is of 500 held-out images, and there are 400": numbers(num_held_out=400),
    "shares are of 1000 and of 900 samples": numbers()
    | {"calibrated": numbers()["calibrated"] | plain(share(45, 900))},
    "a cut is -0.1": numbers() | {"calibrated": numbers()["calibrated"] | {"cut": -0.1}},
    "set by 501 of 500 held-out images": numbers() | {"calibrated": numbers()["calibrated"] | {"num_held_out": 501}},
    "98 held-out images set no cut": numbers() | {"calibrated": numbers()["calibrated"] | {"num_held_out": 98}},
    "400 unique ones of 300 training images": numbers(num_train_unique=400),
    "num_held_out: Input should be greater than or equal to 0, not -500": numbers(num_held_out=-500),
    "conventions: Input should be an object": numbers(conventions=[1]),
    "sha256: Input should be an object, not 'abc'": numbers(sha256="abc"),
    "warnings.0: Input should be an object, not 3": numbers(warnings=[3]),
    "warnings.0: Input tag 'new'": numbers(warnings=[{"code": "new"}]),
    "feature_spaces.net: Input should be an object, not 3": numbers(feature_spaces={"net": 3}),
    "a share is of 200 training images, and there are 199": numbers(
        feature_spaces={"net": space("e" * 64)}, num_train_unique=199
    ),
    "quality.precision_train: Input should be less than": numbers(quality=quality() | {"precision_train": 1.5}),
    "calibrated.false_alarm: Input should be less than 1, not 1.5": numbers()
    | {"calibrated": numbers()["calibrated"] | {"false_alarm": 1.5}},
    "news: Extra inputs are not permitted": numbers(news=1),
    "Input should be less than or equal to 9007199254740992": changed(total=2**62),
    "names are not there": numbers(names=None),
}


@pytest.mark.parametrize("said", DAMAGED)
def test_a_damaged_audit_is_named_alike_by_compare_and_report(tmp_path, said):
    folder, content = write(tmp_path / "a", {}), DAMAGED[said]
    (folder / "audit.json").write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match=r"a/audit\.json (is damaged|has version)") as caught:
        compare([folder])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=re.escape(str(caught.value))):
        render({"a": folder})


def test_what_is_no_audit_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere is not a run: it has no config\.json; and no audit"):
        compare([tmp_path / "nowhere"])
    claim_folder(override(Settings(), {"name": "x"}), tmp_path / "r")
    with pytest.raises(ValueError, match=r"r is not audited: it has no audit/audit\.json"):
        compare([tmp_path / "r"])


# Intervals ------------------------------------------------------------------------------------------------


def test_the_interval_is_students():
    """Of 1, 2, 3: mean 2, deviation 1, t(0.975, 2) = 4.302653."""
    interval = mean([1.0, 2.0, 3.0])
    assert interval.mean == 2
    assert interval.ci95 == pytest.approx([2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5])
    assert mean([5.0]).ci95 is None


def test_a_single_run_has_wilsons_interval_of_its_share_and_none_of_its_distance(tmp_path):
    """Wilson, 100 of 1,000, z = 1.959964: (0.1 + z²/2000 -+ z sqrt(0.09/1000 + z²/4e6)) / (1 + z²/1000)."""
    row = compare([write(tmp_path / "a", numbers(100))])["a"]
    z = 1.959964
    reach = z * (0.09 / 1000 + z**2 / 4e6) ** 0.5
    bounds = [(0.1 + z**2 / 2000 + side * reach) / (1 + z**2 / 1000) for side in (-1, 1)]
    assert row["copied"].interval.ci95 == pytest.approx(bounds, abs=1e-8)
    assert row["copied"].interval.method.startswith("Wilson")
    assert row["frechet_held_out"].interval is None


def test_shares_over_runs_have_limits_that_can_be(tmp_path):
    """Student's t would claim of three times 0 that the share is 0 for sure, and of 0, 4, 0 that it may be below 0."""
    row = compare(seeds(tmp_path, "x", [0, 0, 0], [1.0, 2.0, 3.0]))["x"]
    assert row["copied"].ci95 == share_over_runs([0, 0, 0], [1000] * 3)
    assert row["copied"].ci95[1] > 0.006
    assert row["copied"].interval.method.startswith("Wilson over runs")
    row = compare(seeds(tmp_path, "y", [0, 4, 0], [1.0, 2.0, 3.0]))["y"]
    assert row["copied"].ci95 == share_over_runs([0, 4, 0], [1000] * 3)
    assert row["copied"].ci95[0] > 0


def test_other_numbers_have_students_t_cut_off_where_no_value_can_be(tmp_path):
    row = compare(seeds(tmp_path, "x", [0, 0, 0], [1.0, 2.0, 3.0]))["x"]
    reach = 4.302653 / 3**0.5
    expected = {"ci95": (0, pytest.approx(2 + reach)), "method": "Student's t over runs"}
    interval = row["frechet_held_out"].interval
    assert interval is not None
    assert dict(interval) == expected
    row = compare(seeds(tmp_path, "y", [0, 0, 0], [1.0, 1.0, 1.0]))["y"]
    assert row["frechet_held_out"].interval is None  # runs that agree to the last digit tell of no spread


def prompted(copied, effect, distance=1.0):
    """An audit of 1,000 samples of 24 prompts."""
    content = numbers(copied, distance)
    for entry in (*content["mq"].values(), content["calibrated"]):
        limits = wilson(entry["share"], SAMPLES / effect, 23)
        entry |= {"clusters": 24, "design_effect": effect, "ci95": limits}
    return content


def test_samples_of_few_prompts_are_not_independent(tmp_path):
    """With a design effect of 40, 100 of 1,000 are as sure as 2.5 of 25 prompts, of which there are 24."""
    rows = compare([write(tmp_path / "a", prompted(100, 40.0)), write(tmp_path / "b", prompted(0, 40.0))])
    cell = rows["a"]["copied"]
    assert cell.ci95 == pytest.approx(wilson(0.1, 25, 23))
    assert cell.interval.method == "Wilson over the samples of one run, prompts as clusters"
    assert (cell.shares[0].clusters, cell.shares[0].design_effect) == (24, 40.0)
    apart = differences_from_first(rows)["b"]["copied"]
    expected = difference(*((p, wilson(p, 25, 23)) for p in (0.1, 0)))[1]
    assert apart.ci95 == pytest.approx(expected)
    assert apart.interval.method.endswith("prompts as clusters")


def test_runs_of_the_same_prompts_are_no_surer_than_one_of_prompts(tmp_path):
    runs = [run(tmp_path / str(s), "x", prompted(100 + s, 40.0), train__seed=str(s)) for s in range(3)]
    cell = compare(runs)["x"]["copied"]
    assert cell.ci95 == pytest.approx(wilson(0.101, 25, 23))
    assert cell.interval.method.endswith("no narrower than one run with prompts as clusters")
    low, high = share_over_runs([100, 101, 102], [1000] * 3)
    assert cell.ci95[0] < low < high < cell.ci95[1]


def test_held_out_images_count_once_however_many_runs_saw_them(tmp_path):
    rows = compare([*seeds(tmp_path, "x", [1, 2, 3], [1.0, 2.0, 3.0]), write(tmp_path / "a", numbers())])
    assert rows["x"]["held_out_copied"].interval == rows["a"]["held_out_copied"].interval
    assert rows["a"]["held_out_copied"].interval.method == "Wilson over the held-out images"
    assert differences_from_first(rows)["a"]["held_out_copied"] is None


def test_the_same_share_in_every_run_is_no_spread_whatever_the_rounding():
    assert mean([0.1, 0.1, 0.1]).ci95 == pytest.approx([0.1, 0.1], abs=1e-15)


# Differences ----------------------------------------------------------------------------------------------


def test_differences_are_paired_by_seed(tmp_path):
    """100, 200, 300 minus 130, 250, 310 of 1,000: -0.03, -0.05, -0.01; mean -0.03, deviation 0.02."""
    runs = seeds(tmp_path, "x", [100, 200, 300], [1.0, 1.0, 2.0])
    runs += seeds(tmp_path, "y", [130, 250, 310], [3.0, 3.0, 4.0])[::-1]
    found = differences_from_first(compare(runs))
    assert list(found) == ["y"]
    assert found["y"]["copied"].values == pytest.approx([-0.03, -0.05, -0.01])
    assert found["y"]["frechet_held_out"].mean == -2
    assert found["y"]["frechet_held_out"].interval is None  # each is 2 apart: no spread
    assert differences_from_first({}) == {}


def test_differences_of_distances_are_paired_and_of_shares_follow_from_both(tmp_path):
    """1, 2, 3 minus 3, 3, 6: -2, -1, -3; mean -2, deviation 1."""
    counts = [100, 200, 300], [130, 250, 310]
    runs = seeds(tmp_path, "x", counts[0], [1.0, 2.0, 3.0]) + seeds(tmp_path, "y", counts[1], [3.0, 3.0, 6.0])
    found = differences_from_first(compare(runs))["y"]
    reach = 4.302653 / 3**0.5
    assert found["frechet_held_out"].ci95 == pytest.approx([-2 - reach, -2 + reach])
    assert found["frechet_held_out"].interval.method == "Student's t over seeds, paired"
    both = ((sum(x) / 3000, share_over_runs(x, [1000] * 3)) for x in counts)
    assert found["copied"].ci95 == pytest.approx(difference(*both)[1])
    assert found["copied"].interval.method == "from the intervals of two shares over runs (MOVER), seeds not paired"


def test_one_share_against_several_takes_their_spread(tmp_path):
    runs = [run(tmp_path / "a", "x", numbers(200)), *seeds(tmp_path, "y", [100, 200, 600], [1.0, 2.0, 3.0])]
    found = differences_from_first(compare(runs))["y"]["copied"]
    alone = 0.2, share_over_runs([200], [1000], ([100, 200, 600], [1000] * 3))
    several = 0.3, share_over_runs([100, 200, 600], [1000] * 3)
    assert found.ci95 == pytest.approx(difference(alone, several)[1])
    assert found.interval.method.endswith("the single run is taken to vary like the others")


def test_other_seeds_are_compared_by_welch(tmp_path):
    mine, theirs = [1.0, 2.0, 4.0], [2.0, 7.0]
    runs = seeds(tmp_path, "x", [100, 110, 130], mine) + seeds(tmp_path, "y", [90, 20], theirs, first=1)
    found = differences_from_first(compare(runs))["y"]["frechet_held_out"]
    expected = stats.ttest_ind(mine, theirs, equal_var=False).confidence_interval(0.95)
    assert found.ci95 == pytest.approx(list(expected))
    assert (found.values, found.interval.method) == ((), "Welch's t over runs")


def test_one_run_against_several_takes_their_spread(tmp_path):
    """5 minus 1, 2, 3: 3, deviation 1 for the single run and 1/sqrt(3) for the mean."""
    runs = [run(tmp_path / "a", "x", numbers(100, 5.0)), *seeds(tmp_path, "y", [90, 80, 70], [1.0, 2.0, 3.0])]
    found = differences_from_first(compare(runs))["y"]["frechet_held_out"]
    reach = 4.302653 * (1 + 1 / 3) ** 0.5
    assert found.ci95 == pytest.approx([3 - reach, 3 + reach])
    assert found.interval.method.startswith("Student's t over runs; the single run")


def test_two_single_runs_are_compared_by_newcombe_and_their_distances_not(tmp_path):
    """Newcombe (1998), table II, case (a): 56/70 and 48/80 differ by 0.2, from 0.0524 to 0.3339."""
    first, second = (numbers() | other_samples(total, count, 0) for count, total in ((56, 70), (48, 80)))
    rows = compare([write(tmp_path / "a", first), write(tmp_path / "b", second | {"calibrated": None})])
    found = differences_from_first(rows)["b"]
    assert found["copied"].mean == pytest.approx(0.2)
    assert found["copied"].ci95 == pytest.approx([0.0524, 0.3339], abs=5e-5)
    assert found["copied"].interval.method == "Newcombe over the samples of two runs"
    assert found["frechet_held_out"] == comparison.Cell(values=(), mean=0.0)
    assert found["calibrated"] is None


def test_shares_that_do_not_vary_differ_by_an_interval_with_width(tmp_path):
    runs = seeds(tmp_path, "x", [0, 0], [1.0, 2.0]) + seeds(tmp_path, "y", [0, 0], [1.0, 2.0])
    found = differences_from_first(compare(runs))["y"]["copied"]
    assert found.ci95 is not None
    low, high = found.ci95
    assert low == -high == -share_over_runs([0, 0], [1000] * 2)[1]


def test_repeated_seeds_are_not_paired(tmp_path):
    runs = [run(tmp_path / f"x{n}", "x", numbers(100 + n, 1 + n), train__seed="3") for n in range(2)]
    runs += [run(tmp_path / f"y{n}", "y", numbers(100 + n, 2 + n), train__seed="3") for n in range(2)]
    rows = compare(runs)
    assert differences_from_first(rows)["y"]["frechet_held_out"].interval.method == "Welch's t over runs"
    assert "x has several runs of seed 3: they are counted as if they were independent." in warnings(rows)


# Whether they compare -------------------------------------------------------------------------------------


def test_audits_of_the_same_kind_compare(tmp_path):
    assert warnings(compare([write(tmp_path / "a", numbers()), write(tmp_path / "b", numbers(7, 3.0))])) == []
    assert warnings(compare([write(tmp_path / "c", numbers())])) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sha": "d"}, "The training set differs (aaaaaaaaaaaa… in a; dddddddddddd… in b): copies of other images"),
        ({"num_train_unique": 150}, "The training set differs (200 unique images in a; 150 unique images in b)"),
        ({"num_train": 400}, "The training set differs (300 images in a; 400 images in b)"),
        ({"conventions": CONVENTIONS | {"flips": True}}, "The convention 'flips' differs (no in a; yes in b)."),
        ({"conventions": CONVENTIONS | {"k": 20}}, "The convention 'k' differs (50 in a; 20 in b)."),
    ],
)
def test_what_does_not_compare_is_said(tmp_path, change, said):
    found = warnings(compare([write(tmp_path / "a", numbers()), write(tmp_path / "b", numbers(**change))]))
    assert len(found) == 1
    assert found[0].startswith(said)


def test_samples_extractor_and_quality_conventions_are_compared(tmp_path):
    other = numbers() | other_samples(500, 25, 12)
    other["calibrated"]["false_alarm"] = 0.05
    other["quality"] |= {"extractor": "inception", "sha256": "e" * 64, "few_images": True}
    other["quality"]["conventions"] = {"kid_subset": "50"}
    found = warnings(compare([write(tmp_path / "a", numbers()), write(tmp_path / "b", other)]))
    assert found == [
        "The number of samples differs (1,000 in a; 500 in b): Fréchet distances depend on it.",
        "The extractor differs (pixels in a; inception in b): quality does not compare.",
        "The false-alarm rate differs (0.01 in a; 0.05 in b): calibrated shares do not compare.",
        "The convention 'kid_subset' differs (100 in a; 50 in b).",
        "With no more images than the extractor has dimensions, distances are biased upward: b.",
    ]


def test_seeds_of_one_experiment_are_compared_with_each_other(tmp_path):
    runs = [run(tmp_path / s, "x", numbers(sha=s), train__seed=str(n)) for n, s in enumerate("ad")]
    assert warnings(compare(runs))[0].startswith("The training set differs (aaaaaaaaaaaa… in x; dddddddddddd… in x)")


def test_what_the_audits_warn_of_is_passed_on_once_with_who_says_it(tmp_path):
    few, near = NoCut(num_held_out=3, num_needed=99), ManyNearCopies(num_near_copies=9, num_held_out=500)
    doubtful = {"net": space("e" * 64, warnings=[plain(few)])}
    doubted: dict[str, Any] = {"warnings": [plain(near)], "feature_spaces": doubtful}
    audits = [write(tmp_path / name, numbers(**(doubted if name in "ab" else {}))) for name in "abc"]
    assert warnings(compare(audits)) == [
        f"{near.sentence} (a and b).",
        f"In the features of net: {few.sentence} (a and b).",
    ]
    assert warnings(compare([write(tmp_path / "d", numbers(feature_spaces={"net": space("e" * 64)}))])) == []


def test_many_names_are_cut_short():
    assert listed(["a"]) == "a"
    assert listed(["a", "b", "a", "c"]) == "a, b and c"
    assert listed(list("abcdef")) == "a, b and 4 others"
    assert listed(["x" * 60]) == "x" * 47 + "…"


def test_rows_are_plain_json(tmp_path):
    rows = compare([*seeds(tmp_path, "x", [1, 2], [1.0, 2.0]), write(tmp_path / "a", numbers())])
    found = comparison.plain(rows)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert list(found["x"]) == ["runs", "seeds", "facts", *COLUMNS]
    copied: Any = found["x"]["copied"]
    assert copied["values"] == [0.001, 0.002]
