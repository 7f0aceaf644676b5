"""The plot, the page and the tables of a comparison say what the audits say, and stand alone."""

import base64
import csv
import io
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from iet_agc.metrics.frontier import pareto_set
from iet_agc.metrics.intervals import difference, share_over_runs
from iet_agc.reporting import charts, comparison_page
from iet_agc.reporting.comparison import COLUMNS, compare, differences_from_first
from iet_agc.reporting.comparison_page import write_comparison
from iet_agc.reporting.plane import share_ticks
from tests.audit_folders import write_audit
from tests.compared_runs import numbers, quality, run, seeds, write
from tests.pages import Page


def written(audits, out):
    """Compare, write, and read the page back."""
    rows = compare(audits)
    paths = write_comparison(rows, differences_from_first(rows), out)
    return rows, Page((out / "comparison.html").read_text(encoding="utf-8")), paths


def table(file):
    return list(csv.DictReader(io.StringIO(file.read_text(encoding="utf-8"))))


# The front ------------------------------------------------------------------------------------------------


def test_front_by_pencil():
    """c is beaten by b in both; d by b, at the same y; e stands where a does, and neither beats the other."""
    points = {"a": (1, 5), "b": (2, 3), "c": (3, 4), "d": (4, 3), "e": (1, 5), "f": (6, 0), "g": (1, 6)}
    assert pareto_set(points) == ["a", "e", "b", "f"]
    assert pareto_set({"a": (1, 1)}) == ["a"]
    assert pareto_set({}) == []


def test_nothing_on_the_front_is_beaten_and_everything_else_is():
    random = np.random.default_rng(0)
    places = random.integers(0, 12, (60, 2)).tolist()
    points: dict[str, tuple[float, float]] = {str(number): (x, y) for number, (x, y) in enumerate(places)}
    found = pareto_set(points)

    def beaten(name):
        x, y = points[name]
        return any(a <= x and b <= y and (a < x or b < y) for a, b in points.values())

    assert [beaten(name) for name in found] == [False] * len(found)
    assert all(beaten(name) for name in points if name not in found)


# The plot -------------------------------------------------------------------------------------------------


def plot_of(audits):
    return comparison_page._plot(compare(audits))


def test_axes_are_the_calibrated_share_and_the_held_out_distance(tmp_path):
    plot = plot_of([write(tmp_path / "a", numbers(100, 2.0))])
    assert (plot.share.column, plot.quality.column) == ("calibrated", "frechet_held_out")
    assert plot.quality.label == "Fréchet distance to held-out images (pixels)"
    assert plot.chances == [0.01]


def test_axes_fall_back_where_one_audit_knows_less_and_say_so(tmp_path):
    audits = [write(tmp_path / "a", numbers()), write(tmp_path / "b", numbers(calibrated=False, held_out=False))]
    plot = plot_of(audits)
    assert (plot.share.column, plot.quality.column, plot.chances) == ("copied", "frechet_train", [])
    assert "not calibrated" in plot.share.label
    assert "TRAINING" in plot.quality.label
    text = written(audits, tmp_path / "out")[1].text
    assert "Not every audit has a calibrated cut." in text
    assert "here, a model that copies looks better" in text


def test_points_have_means_intervals_and_runs(tmp_path):
    audits = [*seeds(tmp_path, "x", [100, 300], [1.0, 3.0]), write(tmp_path / "b", numbers(0, 2.0))]
    one, single = plot_of(audits).points
    assert (one.number, one.x, one.y, one.each) == (1, 2.0, 0.1, [(1.0, 0.05), (3.0, 0.15)])
    assert one.x_bar == (0, pytest.approx(2 + 12.7062, abs=1e-4))
    assert one.y_bar == pytest.approx(share_over_runs([50, 150], [1000] * 2))
    assert single.x_bar is None
    assert single.y_bar == (0, pytest.approx(0.00383, abs=1e-5))


def test_front_line_goes_down_in_steps(tmp_path):
    audits = [
        write(tmp_path / name, numbers(copied, x))
        for name, copied, x in (("a", 400, 1.0), ("b", 100, 2.0), ("c", 200, 3.0))
    ]
    _, axes = comparison_page._draw(plot_of(audits), 4, 4)
    (line,) = [line for line in axes.get_lines() if line.get_drawstyle() == "steps-post"]
    (left, right), (_, top) = axes.get_xlim(), axes.get_ylim()
    assert np.asarray(line.get_xdata()).tolist() == [1, 1, 2, right]
    assert np.asarray(line.get_ydata()).tolist() == [top, 0.2, 0.05, 0.05]
    assert left < 1
    assert top > 0.2


def test_share_axis_shows_zero_and_small_shares(tmp_path):
    audits = [write(tmp_path / "a", numbers(0, 1.0)), write(tmp_path / "b", numbers(400, 2.0))]
    _, axes = comparison_page._draw(plot_of(audits), 4, 4)
    height = axes.transAxes.inverted().transform(axes.transData.transform([(1, 0), (1, 0.01), (1, 0.2)]))[:, 1]
    assert 0.02 < height[0] < 0.1  # 0 is on the axes, with room for the mark
    assert height[1] - height[0] > 0.15  # 1 % is far from 0, though 20 % is shown
    assert axes.get_yticks()[0] == 0
    assert np.diff(np.sqrt(axes.get_yticks())).min() > 0.04


@pytest.mark.parametrize("most", [0.02, 0.07, 0.3, 1.0])
def test_ticks_are_few_and_within(most):
    ticks = share_ticks(most)
    assert 4 <= len(ticks) <= 10
    assert ticks == sorted(set(ticks))
    assert ticks[-1] <= 1


def test_long_intervals_end_in_arrows_and_leave_room_for_the_marks(tmp_path):
    plot = plot_of(seeds(tmp_path, "x", [100, 120], [10.0, 12.0]))
    assert plot.points[0].x_bar == (0, pytest.approx(23.7062, abs=1e-4))
    _, axes = comparison_page._draw(plot, 4, 4)
    assert axes.get_xlim()[0] > 7
    assert axes.get_xlim()[1] < 15
    assert {"<", ">"} <= {str(line.get_marker()) for line in axes.get_lines()}


def test_labels_do_not_collide(tmp_path):
    """Twelve experiments, most of them at nearly the same place."""
    random = np.random.default_rng(3)
    audits = [
        write(tmp_path / f"e{number}", numbers(int(copied), 1 + 0.05 * number))
        for number, copied in enumerate(random.integers(0, 14, 12))
    ]
    plot = plot_of(audits)
    with charts.style():
        figure, axes = comparison_page._draw(plot, 4.3, 3.7)
        boxes = comparison_page._label(figure, axes, plot.points)
    assert len(boxes) == 12
    assert all(comparison_page._overlap(a, b) == 0 for n, a in enumerate(boxes) for b in boxes[:n])
    assert [text.get_text() for text in axes.texts] == [str(number) for number in range(1, 13)]


def test_overlap_by_pencil():
    assert comparison_page._overlap((0, 0, 2, 2), (1, 1, 5, 5)) == 1
    assert comparison_page._overlap((0, 0, 2, 2), (2, 0, 3, 3)) == 0


# Files ----------------------------------------------------------------------------------------------------


def test_page_stands_alone_and_is_accessible(tmp_path):
    audits = [*seeds(tmp_path, "x", [100, 200], [1.0, 2.0]), *seeds(tmp_path, "y", [20, 30], [1.0, 1.5])]
    rows, page, paths = written(audits, tmp_path / "out")
    text = (tmp_path / "out" / "comparison.html").read_text(encoding="utf-8")
    assert paths["html"] == str(tmp_path / "out" / "comparison.html")
    script = r"<script>(.*?)</script>"
    assert len(re.findall(script, text, re.DOTALL)) == text.count("<script") == 1
    rest = re.sub(script, "", text, flags=re.DOTALL)
    assert not re.search(r"""(src|href)\s*=\s*["']?[^"'#\s]|url\((?!#)|@import|<link|\son\w+=""", rest)
    tags = [tag for tag, _ in page.tags]
    assert (tags.count("h1"), tags.count("svg"), tags.count("main")) == (1, 2, 1)  # one plot for each width
    assert ("html", {"lang": "en"}) in page.tags
    picture, narrow = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert picture["aria-label"] == narrow["aria-label"]
    assert picture["role"] == "img"
    label = picture["aria-label"]
    assert label is not None
    assert "1 x: 7.5 % (0.3 % to 66.2 %), 1.500" in label
    assert label.endswith("On the front: y.")
    assert all("scope" in attributes for tag, attributes in page.tags if tag == "th")
    identifiers = re.findall(r'\bid="([^"]+)"', text)
    assert len(identifiers) == len(set(identifiers))
    assert list(rows) == ["x", "y"]


def test_page_says_the_numbers(tmp_path):
    audits = [*seeds(tmp_path, "x", [100, 200], [1.0, 2.0]), *seeds(tmp_path, "y", [20, 30], [1.0, 1.5])]
    text = written(audits, tmp_path / "out")[1].text.replace("\u00a0", " ")
    assert "y: copied share 1.2 %, Fréchet to held-out 1.250" in text
    assert "For the other experiment, this one is copied no more and is no worse in quality." in text
    assert "x minus the others" in text
    shares = ((sum(x) / 2000, share_over_runs(x, [1000] * 2)) for x in ([100, 200], [20, 30]))
    low, high = difference(*shares)[1]
    assert f"+12.5 −{-100 * low:.1f} to +{100 * high:.1f}" in text
    assert -0.2 < low < 0 < 0.7 < high < 0.9
    assert "Student's t over seeds, paired" in text
    assert "Wilson over runs: at the number of samples that their spread leaves" in text
    assert "of 20 of them" not in text
    assert "Before you compare" not in text


def test_single_runs_say_that_their_distance_has_no_interval(tmp_path):
    audits = [write(tmp_path / "mine", numbers(100, 1.0)), write(tmp_path / "theirs", numbers(200, 2.0))]
    text = written(audits, tmp_path / "out")[1].text.replace("\u00a0", " ")
    assert "Newcombe over the samples of two runs" in text
    assert "for Fréchet distances of one run none is known" in text
    assert re.search(r"−7\.3 to −2\.7 −1\.000 (?![−+])", text)
    assert "no interval" not in text.replace(
        "no interval is known: of a single run, Fréchet distances and other", "", 1
    )
    assert "−5.0 −7.3 to −2.7" in text  # Newcombe, 50 and 100 of 1,000
    assert "Before you compare" not in text
    assert "AuthPct" in text


def test_first_samples_of_each_experiment_are_shown(tmp_path):
    """Those of the first run, where its audit holds their pictures; the others keep their place in the plot."""
    audits = [*seeds(tmp_path, "x", [100, 200], [1.0, 2.0]), write(tmp_path / "own", numbers(10, 3.0))]
    assert "First samples" not in written(audits, tmp_path / "out")[1].text
    made = write_audit(tmp_path / "made", record=False, spaces=())
    for name in ("audit.json", "pictures.npz"):
        shutil.copy(made.path / name, tmp_path / "own" / name)
    page = written(audits, tmp_path / "out")[1]
    assert [image["alt"] for image in page.all("img")] == [f"own, sample {number}" for number in range(12)]
    drawn = Image.open(io.BytesIO(base64.b64decode(page.all("img")[3]["src"].partition(",")[2])))
    assert np.array_equal(np.asarray(drawn)[::16, ::16], made.samples[3, 0])
    (tmp_path / "own" / "pictures.npz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"pictures\.npz is damaged: .*run the same 'iet-agc audit' again"):
        written(audits, tmp_path / "out")


def test_names_are_escaped_everywhere(tmp_path):
    audits = [
        write(tmp_path / "<b>&\"'$x$", numbers()),
        write(tmp_path / "plain", numbers(5, 2.0, quality=quality(2.0) | {"extractor": "$a_b$"})),
    ]
    rows, page, _ = written(audits, tmp_path / "<i>out")
    assert "<b>&\"'$x$" in page.text
    assert not {"b", "i"} & {tag for tag, _ in page.tags}
    assert len(rows) == 2


def test_picture_is_large_and_described(tmp_path):
    audits = [*seeds(tmp_path, "x", [100, 200], [1.0, 2.0]), write(tmp_path / "other", numbers())]
    written(audits, tmp_path / "out")
    with Image.open(tmp_path / "out" / "comparison.png") as picture:
        picture.load()
        assert picture.format == "PNG"
        assert picture.width == 1440
        assert 900 < picture.height < 1300
        assert picture.info["dpi"] == pytest.approx((200, 200), abs=0.1)
        assert picture.info["Description"].startswith("Scatter plot of copied share")
        assert len(np.unique(np.asarray(picture.convert("RGB"))[::8, ::8].reshape(-1, 3), axis=0)) > 100


def test_tables_have_every_run_and_every_mean(tmp_path):
    audits = [*seeds(tmp_path, "x", [100, 200], [1.0, 2.0]), write(tmp_path / "own", numbers(10, 3.0))]
    _, _, paths = written(audits, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        ["comparison.html", "comparison.png", "comparison.csv", "comparison-means.csv"]
    )
    runs = table(tmp_path / "out" / "comparison.csv")
    assert [(line["experiment"], line["run"], line["seed"]) for line in runs] == [
        ("x", str(audits[0]), "0"),
        ("x", str(audits[1]), "1"),
        ("own", str(audits[2]), ""),
    ]
    assert set(COLUMNS) <= set(runs[0])
    assert (runs[1]["copied"], runs[1]["copied_count"], runs[1]["frechet_held_out"]) == ("0.2", "200", "2.0")
    assert float(runs[1]["copied_low"]) < 0.2 < float(runs[1]["copied_high"])
    assert (runs[0]["clip_score"], runs[2]["d1_d2"], runs[2]["auth_pct_count"]) == ("", "0.04", "480")
    assert float(runs[2]["auth_pct_low"]) == pytest.approx(44.91, abs=0.01)
    means = {(line["experiment"], line["column"]): line for line in table(tmp_path / "out" / "comparison-means.csv")}
    assert len(means) == 2 * len(COLUMNS)
    assert float(means["x", "copied"]["mean"]) == pytest.approx(0.15)
    assert means["x", "copied"]["interval"].startswith("Wilson over runs")
    assert means["x", "frechet_held_out"]["interval"] == "Student's t over runs"
    assert means["x", "copied"]["first_minus_this"] == ""
    assert float(means["own", "frechet_held_out"]["first_minus_this"]) == -1.5
    assert means["own", "frechet_held_out"]["low"] == ""
    assert means["own", "copied"]["interval"] == "Wilson over the samples of one run"
    assert paths["means"].endswith("comparison-means.csv")


def test_one_experiment_is_no_comparison_but_a_page(tmp_path):
    _, page, _ = written([run(tmp_path / "r", "x", numbers(0, 1.0))], tmp_path / "out")
    assert "One experiment" in page.text
    assert "minus the others" not in page.text


def test_same_audits_give_the_same_bytes_and_replace_an_earlier_comparison(tmp_path):
    audits = [write(tmp_path / name, numbers(copied)) for name, copied in (("a", 100), ("b", 50))]
    out = tmp_path / "new" / "out"
    written(audits, out)
    first = {path.name: path.read_bytes() for path in out.iterdir()}
    (out / ".comparison.png.unfinished").write_bytes(b"what a kill left")
    written(audits[:1], out)
    assert (out / "comparison.csv").read_bytes() != first["comparison.csv"]
    written(audits, out)
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.name in first} == first


def test_other_folders_are_refused_untouched(tmp_path):
    audits = [write(tmp_path / "a", numbers())]
    for taken, said in (
        (audits[0], "holds other things"),
        (audits[0] / "audit.json", "is a file, and a comparison is a folder of four"),
    ):
        with pytest.raises(ValueError, match=said):
            written(audits, taken)
    assert [path.name for path in audits[0].iterdir()] == ["audit.json"]
    with pytest.raises(ValueError, match="nothing to compare"):
        write_comparison({}, {}, tmp_path / "out")


@pytest.mark.parametrize("name", ["comparison.html", "comparison.png", "comparison.csv", "comparison-means.csv"])
def test_files_of_the_same_names_are_somebody_elses(tmp_path, name):
    """Until they begin as ours do: of a comparison that was killed on the way there is a part."""
    audits = [write(tmp_path / "a", numbers())]
    written(audits, tmp_path / "whole")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_bytes(b"mine")
    with pytest.raises(ValueError, match=f"{name} is there and is no comparison of ours: choose another output"):
        written(audits, tmp_path / "out")
    assert [(file.name, file.read_bytes()) for file in (tmp_path / "out").iterdir()] == [(name, b"mine")]
    (tmp_path / "out" / name).write_bytes((tmp_path / "whole" / name).read_bytes())
    written(audits, tmp_path / "out")


def test_what_cannot_be_written_is_said_in_one_line_and_leaves_nothing(tmp_path):
    audits = [write(tmp_path / "a", numbers())]
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match=r"below cannot be written: .*/file is a file, not a folder; choose another"):
        written(audits, tmp_path / "file" / "below")
    (tmp_path / "out" / "comparison.png").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"comparison\.png is there and is no regular file: choose another output"):
        written(audits, tmp_path / "out")
    assert not [path for path in (tmp_path / "out").iterdir() if "unfinished" in path.name]


def test_an_experiment_without_any_distance_is_named(tmp_path):
    """An audit of one image knows none."""
    audits = [
        write(tmp_path / "a", numbers()),
        write(tmp_path / "few", numbers(quality=quality() | {"frechet_train": None, "frechet_held_out": None})),
    ]
    with pytest.raises(ValueError, match="few has no Fréchet distance"):
        written(audits, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_failed_drawing_leaves_the_earlier_comparison(tmp_path, monkeypatch):
    audits = [write(tmp_path / "a", numbers())]
    written(audits, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    monkeypatch.setattr(comparison_page, "_svg", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        written(audits, tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_drawing_imports_no_torch():
    program = "import sys, iet_agc.reporting.comparison_page; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_numbers_are_zero_only_where_they_are():
    assert [charts.decimal(value) for value in (0.0, -0.0, 1e-6, -1e-6, -0.05, 2.5, 12.345)] == [
        *("0", "0", "0.0000", "0.0000", "\u22120.0500", "2.500", "12.3"),
    ]
    assert charts.decimal(float("nan")) == "–"


def test_the_sign_of_a_difference_is_as_the_page_says(tmp_path):
    """30 % are copied by the first, 10 % by the other."""
    runs = [run(tmp_path / "a", "x", numbers(300, 1.0)), run(tmp_path / "b", "y", numbers(100, 1.0))]
    rows, page, _ = written(runs, tmp_path / "out")
    assert differences_from_first(rows)["y"]["copied"].mean == pytest.approx(0.2)
    assert "+20.0" in page.text
    assert "x minus the others The numbers of x less those of the experiment in each row; shares in" in page.text
    assert "Above 0, x has the higher value, and the other experiment the lower one" in page.text
