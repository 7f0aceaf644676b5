"""The page says what audit.json says, shows the copied pixels, stands alone, and damaged folders are refused."""

import base64
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from iet_agc.audit import AuditResult, audit
from iet_agc.audits import save_audit
from iet_agc.data import ImageSet
from iet_agc.report import render, write_report
from iet_agc.sources import TrainingRecord

SHAPES = {"grey": (1, 8, 8), "colour": (3, 16, 16)}
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Tags with their attributes, visible text, and whether every element was closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open and "svg" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for found, attributes in self.tags if found == tag]


@dataclass
class Case:
    folder: Path
    train: torch.Tensor
    result: AuditResult

    @property
    def numbers(self) -> dict[str, Any]:
        return json.loads((self.folder / "audit.json").read_text())


def noise(count: int, shape: tuple[int, int, int], seed: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, *shape), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def points(member: int) -> list[dict[str, Any]]:
    """A curve as the engine writes it."""
    same = {"round": 0, "learning_rate": 2e-4, "images_per_second": 9.0, "skip_rate": 0.1}
    bands = [None, *[0.1] * 9]
    return [
        {"step": s, "images_seen": 8 * s, "loss": 1 / (s + member), "skip_rate_bands": bands, **same} for s in (1, 2, 3)
    ]


def build(
    folder: Path,
    shape: tuple[int, int, int] = (1, 8, 8),
    held_out: int = 300,
    record: bool = True,
    copies: int = 8,
    members: int = 2,
    samples: int = 32,
) -> Case:
    """An audit with known copies: sample i < copies is training image i, the first one mirrored and exact."""
    train = noise(70, shape, 0)
    train = torch.cat([train, train[:2].repeat(3, 1, 1, 1)])
    images = noise(samples, shape, 1)
    images[:copies] = (train[:copies].int() + torch.arange(copies)[:, None, None, None]).clamp(max=255).byte()
    if copies:
        images[0] = train[0].flip(-1)
    telemetry = TrainingRecord(
        torch.full((76,), 10), torch.arange(76) % 5, {f"member-{m:04d}": points(m) for m in range(1, members + 1)}
    )
    result = audit(
        ImageSet(train, "photos/my train"),
        ImageSet(images, "samples"),
        ImageSet(noise(held_out, shape, 2), "held") if held_out else None,
        flips=True,
        extractor="pixels",
        seeds=range(1000, 1000 + samples),
        record=telemetry if record else None,
    )
    names = {"train": "photos/my train", "samples": "samples", "held_out": "held" if held_out else ""}
    return Case(save_audit(result, folder, names), train, result)


KINDS = [(shape, held_out, record) for shape in SHAPES for held_out, record in ((300, True), (0, False))]


@pytest.fixture(scope="module", params=KINDS, ids=str)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    shape, held_out, record = request.param
    return build(tmp_path_factory.mktemp("audit") / "it", SHAPES[shape], held_out, record)


@pytest.fixture
def one(tmp_path: Path) -> Case:
    return build(tmp_path / "audit")


def decode(uri: str | None, shape: tuple[int, ...]) -> torch.Tensor:
    """The picture behind a data URI, with the nearest enlargement undone and checked."""
    assert uri is not None
    assert uri.startswith("data:image/png;base64,")
    pixels = np.array(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))
    pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    times = pixels.shape[1] // shape[1]
    small = pixels[:, ::times, ::times]
    assert np.array_equal(small.repeat(times, 1).repeat(times, 2), pixels)
    assert pixels.shape[1] >= 64
    return torch.from_numpy(small.copy())


def test_page_stands_alone_and_is_accessible(case: Case) -> None:
    text = render({"it": case.folder})
    page = Page(text)
    links = [
        value
        for _, attributes in page.tags
        for key, value in attributes.items()
        if key in ("src", "href", "xlink:href")
    ]
    assert links
    assert all(str(link).startswith(("data:image/png;base64,", "#")) for link in links)
    assert not re.search(r"https?:|@import|<script|<link", text)
    assert all(link.startswith("url(#") for link in re.findall(r"url\([^)]*", text))
    assert all(attributes.get("alt") for attributes in page.all("img"))
    assert all(attributes.get("aria-label") and attributes["role"] == "img" for attributes in page.all("svg"))
    assert page.all("html") == [{"lang": "en"}]
    headings = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert headings.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(headings))


def test_verdict_counts_what_audit_json_counts(case: Case) -> None:
    text = Page(render({"it": case.folder})).text
    numbers = case.numbers
    if numbers["calibrated"]:
        assert f"it: {numbers['calibrated']['count']} of 32 samples (" in text
        assert "than 99 % of held-out real images are; expected by chance: 1 %." in text
        assert "Copies found" in text
    else:
        assert f"it: {numbers['mq']['0.15']['count']} of 32 samples (" in text
        assert "Not calibrated" in text
        assert "No held-out images were given" in text
        assert "expected by chance" not in text
    assert numbers["mq"]["0.15"]["count"] == 8


def test_closest_pair_shows_the_copied_pixels(case: Case) -> None:
    images = Page(render({"it": case.folder})).all("img")
    shape = tuple(case.train.shape[1:])
    assert images[0]["alt"] == "sample 0"
    assert torch.equal(decode(images[0]["src"], shape), case.train[0].flip(-1))
    assert str(images[1]["alt"]).startswith("training image 0,")
    assert torch.equal(decode(images[1]["src"], shape), case.train[0])
    assert torch.equal(decode(images[3]["src"], shape), case.train[1])


def test_sections_follow_what_is_known(case: Case) -> None:
    page = Page(render({"it": case.folder}))
    with_record = case.result.record is not None
    assert ("Most often skipped training images" in page.text) == with_record
    assert ("Training" in page.words) == with_record
    assert len(page.all("svg")) == (6 if with_record else 2)
    worst = case.result.ratios.argsort(stable=True)[:24]
    assert case.result.mirrored[worst[0]]
    assert page.words.count("mirrored") == int(case.result.mirrored[worst].sum()) < 24
    assert "4× in the training set" in page.text
    assert "seed 1000" in page.text
    assert "extractor pixels" in page.text
    assert "Few images." in page.text  # 32 samples, 64 or 768 dimensions
    held_out = " --held-out held" if case.result.held_out_ratios is not None else ""
    command = f"iet-agc audit --train 'photos/my train' --samples samples{held_out} --flips --extractor pixels --out it"
    assert command in page.text


def test_table_has_all_nine_cuts(one: Case) -> None:
    text = Page(render({"it": one.folder})).text
    for cut, entry in one.numbers["mq"].items():
        share, held_out = (
            f"{100 * e['share']:.1f} %".replace("100.0", "100") for e in (entry, one.numbers["held_out"]["mq"][cut])
        )
        share, held_out = (re.sub(r"^0\.0 %", "0 %", s) for s in (share, held_out))
        assert re.search(rf"{cut} {entry['count']} {re.escape(share)} .*? to .*? {re.escape(held_out)} ", text)


def test_names_are_escaped_everywhere(tmp_path: Path) -> None:
    folder, bad = tmp_path / "a", "$\\frac$<script>alert(1)</script>"  # the first part is no valid mathtext
    case = build(folder)
    save_audit(case.result, folder, {"train": bad, "samples": "'\"", "held_out": ""})
    curves = {bad: points(1), "member-0001": points(2)}
    (folder / "curves.json").write_text(json.dumps(curves))
    text = render({bad: folder, "b": folder}, title=bad)
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)" in text
    Page(text)


def test_several_audits_are_compared(tmp_path: Path) -> None:
    folders = {
        "copies": build(tmp_path / "a").folder,
        "plain": build(tmp_path / "b", held_out=0, copies=0, record=False).folder,
    }
    page = Page(render(folders))
    assert "Comparison" in page.text
    assert "These audits differ in the held-out set." in page.text
    assert [link["href"] for link in page.all("a")] == ["#audit-1", "#audit-2"]
    assert {"audit-1", "audit-2"} <= {section.get("id") for section in page.all("section")}
    assert "No sample is below the cut 0.15." in page.text
    assert "differ" not in Page(render({"a": folders["copies"], "b": folders["copies"]})).text


def test_same_audit_gives_the_same_bytes(one: Case, tmp_path: Path) -> None:
    first = write_report({"it": one.folder}, tmp_path / "new" / "report.html")
    again = write_report({"it": one.folder}, tmp_path / "again.html")
    assert first.read_bytes() == again.read_bytes()
    assert [file.name for file in first.parent.iterdir()] == ["report.html"]
    assert str(tmp_path) not in first.read_text()


def edit(folder: Path, **changes: Any) -> None:
    numbers = json.loads((folder / "audit.json").read_text())
    (folder / "audit.json").write_text(json.dumps(numbers | changes))


@pytest.mark.parametrize(
    ("held_out", "low", "label"),
    [
        (497, 0.05, "Copies found"),
        (497, 0.015, "Undecided"),  # 3 of 497 below the cut: the true rate may be 1.8 %
        (497, 0.01, "No excess over real images shown"),
        (497, 0.0, "No excess over real images shown"),
        (100, 0.03, "Undecided"),  # none of 100 below the cut: the true rate may be 3.6 %
        (100, 0.04, "Copies found"),
    ],
)
def test_verdict_claims_no_more_than_is_known(tmp_path: Path, held_out: int, low: float, label: str) -> None:
    case = build(tmp_path / "audit", held_out=held_out, record=False)
    edit(case.folder, calibrated=case.numbers["calibrated"] | {"ci95": [low, 0.9]})
    page = Page(render({"it": case.folder}))
    assert label in page.words
    assert (
        f"may be up to {'1.8' if held_out == 497 else '3.6'} %" in page.text
    )  # Clopper and Pearson's table: 0 of 20 gives 0.1684
    assert ("a share of 90.0 % is not ruled out" in page.text) == (label == "No excess over real images shown")


def test_few_held_out_images_cannot_calibrate(tmp_path: Path) -> None:
    case = build(tmp_path / "audit", held_out=98)
    page = Page(render({"it": case.folder}))
    assert "Not calibrated" in page.words
    below = case.numbers["mq"]["0.15"]["count"]
    assert f"it: {below} of 32 samples" in page.text
    assert "Only 98 held-out images were given, too few" in page.text
    assert "expected by chance" not in page.text


def test_nothing_skipped_draws_no_skip_rate(one: Case) -> None:
    curves = {"member-0001": [point | {"skip_rate": 0.0} for point in points(1)], "member-0002": []}
    (one.folder / "curves.json").write_text(json.dumps(curves))
    page = Page(render({"it": one.folder}))
    assert len(page.all("svg")) == 4
    assert "No sample was skipped." in page.text


def test_many_members_and_long_curves_stay_small(one: Case) -> None:
    long = [points(1)[0] | {"images_seen": number} for number in range(1, 4001)]
    (one.folder / "curves.json").write_text(json.dumps({f"member-{m:04d}": long for m in range(10)}))
    text = render({"it": one.folder})
    assert "one line for each of 10 members" in text
    assert len(text) < 1_500_000


def test_large_pictures_are_shrunk(one: Case) -> None:
    with np.load(one.folder / "pictures.npz") as pictures:
        large = {
            key: array.repeat(40, 2).repeat(35, 3) if array.ndim == 4 else array for key, array in pictures.items()
        }
    np.savez(one.folder / "pictures.npz", **large)  # 320 high, 280 wide
    page = Page(render({"it": one.folder}))
    shown = Image.open(io.BytesIO(base64.b64decode(str(page.all("img")[0]["src"]).partition(",")[2])))
    assert shown.size == (224, 256)
    assert "Pictures are made smaller here." in page.text


def drop_row(file: Path) -> None:
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "audit.json": lambda file: file.write_text('{"version": 1,'),
    "audit.json ": lambda file: file.write_text("[]"),
    "audit.json  ": lambda file: file.write_text('{"version": 1}'),
    "audit.json   ": lambda file: edit(file.parent, num_train="many"),
    "audit.json    ": lambda file: edit(file.parent, calibrated={"cut": None}),
    "audit.json     ": lambda file: edit(file.parent, mq={}),
    "audit.json      ": lambda file: edit(file.parent, conventions=3),
    "audit.json       ": lambda file: edit(file.parent, names={}),
    "samples.csv": drop_row,
    "samples.csv ": lambda file: file.write_text(file.read_text().replace("ratio", "number")),
    "samples.csv  ": lambda file: file.write_text(re.sub(r"(\n9,1009,)[^,]*", r"\g<1>0.01", file.read_text())),
    "training-images.csv": drop_row,
    "training-images.csv ": lambda file: file.unlink(),
    "pictures.npz": lambda file: file.write_bytes(file.read_bytes()[:200]),
    "pictures.npz ": lambda file: file.write_bytes(b""),
    "pictures.npz  ": lambda file: np.savez(file, worst=np.arange(3)),
    "curves.json": lambda file: file.write_text('{"member-0001": [{"step": 1}]}'),
    "curves.json ": lambda file: file.write_bytes(b"\xff\xfe"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_folder_is_refused_in_one_line(one: Case, damage: str) -> None:
    file = one.folder / damage.strip()
    DAMAGES[damage](file)
    with pytest.raises(ValueError, match=r"again") as caught:
        render({"it": one.folder})
    message = str(caught.value)
    assert message.startswith(str(file))
    assert "\n" not in message


def test_absent_other_and_no_audits(one: Case, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / 'no' / 'audit.json'} is not there: give a folder")):
        render({"it": tmp_path / "no"})
    edit(one.folder, version=2)
    with pytest.raises(ValueError, match="version 2, this iet-agc reads 1: run 'iet-agc audit' again"):
        write_report({"it": one.folder}, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()
    with pytest.raises(ValueError, match="at least one audit"):
        render({})


@pytest.mark.parametrize(("module", "free"), [("iet_agc.report", True), ("iet_agc.audit", False)])
def test_report_imports_no_torch(module: str, free: bool) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules or 'matplotlib.pyplot' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, check=False
    )
    assert (done.returncode == 0) == free, done.stderr
