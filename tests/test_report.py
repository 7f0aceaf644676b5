"""The page says what audit.json says, shows the copied pixels, stands alone, and damaged folders are refused."""

import base64
import hashlib
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from iet_agc.auditing.compute import audit
from iet_agc.auditing.run import save_audit
from iet_agc.auditing.schema import AuditRecord
from iet_agc.data.image_set import ImageSet
from iet_agc.metrics.gate import PIXELS, gate
from iet_agc.reporting.audit_page import render, write_report
from iet_agc.reporting.charts import undrawn
from iet_agc.reporting.reader import read_audit
from tests.audit_folders import NEAR_COPIES, NO_CUT, SHA, Folder, noise, points, write_audit
from tests.pages import Page

SHAPES = {"grey": (1, 8, 8), "colour": (3, 16, 16)}
KINDS: dict[str, dict[str, Any]] = {
    "full": {},
    "not held out": {"held_out": 0, "record": False, "spaces": ()},
    "colour": {"shape": (3, 16, 16), "extractor": "inception-v3-compat", "spaces": ("inception-v3-compat", "other")},
}


@dataclass
class Case:
    folder: Folder
    text: str

    @cached_property
    def page(self) -> Page:
        return Page(self.text)


@pytest.fixture(scope="module", params=KINDS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = write_audit(tmp_path_factory.mktemp("audit") / "it", **KINDS[request.param])
    return Case(folder, render({"it": folder.path}))


@pytest.fixture
def one(tmp_path: Path) -> Folder:
    return write_audit(tmp_path / "audit", record=False, pictures=10)


def small(folder: Path, **options: Any) -> Folder:
    """An audit of pixels only, with few charts and pictures, so that its page is made in no time."""
    least: dict[str, Any] = {"record": False, "spaces": (), "pictures": 4}
    return write_audit(folder, **least | options)


def page_of(folder: Folder) -> Page:
    return Page(render({"it": folder.path}))


def decode(uri: str | None, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """The picture behind a data URI, with the nearest enlargement undone and checked."""
    assert uri is not None
    assert uri.startswith("data:image/png;base64,")
    pixels = np.array(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))
    pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    times = pixels.shape[1] // shape[1]
    small = pixels[:, ::times, ::times]
    assert np.array_equal(small.repeat(times, 1).repeat(times, 2), pixels)
    assert pixels.shape[1] >= 128
    return small


def shown(entry: dict[str, Any]) -> str:
    """A share as the page writes it, with its interval."""
    share, low, high = (
        re.sub(r"\b(0|100)\.0$", r"\1", f"{100 * value:.1f}") for value in (entry["share"], *entry["ci95"])
    )
    return f"{share} % {low} to {high} %"


# One audit ----------------------------------------------------------------------------------------------


def test_page_stands_alone_and_is_accessible(case: Case) -> None:
    text, page = case.text, case.page
    links = [
        value
        for _, attributes in page.tags
        for key, value in attributes.items()
        if key in ("src", "href", "xlink:href")
    ]
    assert links
    own = ("data:image/png;base64,", "data:text/csv;base64,", "#")
    assert all(str(link).startswith(own) for link in links)
    assert not re.search(r"https?:|@import|<link", text)
    (script,) = re.findall(r"<script[^>]*>(.*?)</script>", text, re.DOTALL)  # ours alone, which browsers are told
    hashed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-" + hashed + "'"
    assert [meta["content"] for meta in page.all("meta") if "http-equiv" in meta] == [policy]
    inside = {str(link["href"]).removeprefix("#") for link in page.all("a") if str(link["href"]).startswith("#")}
    assert inside <= {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert all(link.startswith("url(#") for link in re.findall(r"url\([^)]*", text))
    assert all(attributes.get("alt") for attributes in page.all("img"))
    assert all(attributes.get("aria-label") and attributes["role"] == "img" for attributes in page.all("svg"))
    assert all(attributes.get("scope") for attributes in page.all("th"))
    assert page.all("html") == [{"lang": "en"}]
    headings = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert headings.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(headings))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r"url\(#([^)]*)\)", text)) <= set(ids)


def test_verdict_counts_what_audit_json_counts(case: Case) -> None:
    text, numbers = case.page.text, case.folder.numbers
    if numbers["calibrated"]:
        assert f"{numbers['calibrated']['count']} of 32 samples (25.0 %, 95 % interval 13.3 to 42.1 %) are " in text
        assert "than 99 % of held-out real images are; expected by chance: 1 %." in text
        assert "Copies found" in text
        assert "3 more held-out images stand in the training set and were left out." in text
        assert "2 more repeat other held-out images and were left out." in text
    else:
        assert "8 of 32 samples (25.0 %, 95 % interval 13.3 to 42.1 %) have a distance ratio below 0.15" in text
        assert "1 exact copy found, the share in pixels is not known" in text
        assert "No held-out images were given" in text
        assert "expected by chance" not in text
    assert "32 samples, 76 training images (70 unique), " in text
    assert numbers["mq"]["0.15"]["count"] == 8


def test_closest_pair_shows_the_copied_pixels_and_the_difference(case: Case) -> None:
    images, folder, shape = case.page.all("img"), case.folder, case.folder.train.shape[1:]
    gallery = images[next(place for place, image in enumerate(images) if "difference" in str(image["alt"])) - 2 :]
    for shown in (images, gallery):  # beside the verdict, and among the others
        assert shown[0]["alt"] == "sample 0"
        assert np.array_equal(decode(shown[0]["src"], shape), folder.train[0, :, :, ::-1])
        assert str(shown[1]["alt"]).startswith("training image 0,")
        assert np.array_equal(decode(shown[1]["src"], shape), folder.train[0])
    assert gallery[2]["alt"] == "difference of the two, 0\u00a0% on average"
    assert "equal after mirroring" in case.page.text
    assert (decode(gallery[2]["src"], shape) == 255).all()
    assert np.array_equal(decode(gallery[4]["src"], shape), folder.train[1])
    differences = np.abs(folder.samples[1].astype(int) - folder.train[1])
    assert np.array_equal(decode(gallery[5]["src"], shape)[0], 255 - differences.max(axis=0))
    assert gallery[5]["alt"] == f"difference of the two, {100 * differences.mean() / 255:.1f}\u00a0% on average"


def test_the_first_samples_are_shown_as_they_come(case: Case) -> None:
    images = case.page.all("img")
    first = [place for place, image in enumerate(images) if image["alt"] == "sample 0"][1]  # the first one is a pair's
    assert [image["alt"] for image in images[first : first + 24]] == [f"sample {number}" for number in range(24)]
    for number in (0, 9, 23):
        shown = decode(images[first + number]["src"], case.folder.train.shape[1:])
        assert np.array_equal(shown, case.folder.samples[number])
    assert "The first 24 of 32 samples, as they come: none was chosen." in case.page.text


def test_sections_follow_what_is_known(case: Case) -> None:
    page, numbers = case.page, case.folder.numbers
    recorded = bool(json.loads((case.folder.path / "curves.json").read_text()))
    spaces = numbers["feature_spaces"]
    assert ("Most often skipped training images" in page.text) == recorded
    assert page.words.count("Training") == 2 * recorded  # in the contents, and above the curves
    assert len(page.all("svg")) == 2 + 2 * len(spaces) + (4 if recorded else 0)
    assert [word for word in page.words if word in ("mirrored", ", mirrored")] == [", mirrored", "mirrored"]
    assert "seed 1000" in page.text
    assert "present 4×" in page.text
    assert "Other statistics of copying" in page.text
    assert ("Copies in feature spaces" in page.text) == bool(spaces)
    assert all(f"Features of {name}" in page.text for name in spaces)
    assert ("Inception score" in page.text) == bool(spaces)  # pixels have none
    extractor = numbers["quality"]["extractor"]
    assert ("Quality, in pixels" if extractor == "pixels" else f"Quality, in the features of {extractor}") in page.text
    assert page.text.count("Quality in these features stands below.") == int(extractor in spaces)


def test_command_is_the_one_that_was_given(case: Case) -> None:
    numbers = case.folder.numbers
    held_out = " --held-out held" if numbers["num_held_out"] else ""
    extractors = dict.fromkeys([numbers["quality"]["extractor"], *numbers["feature_spaces"]])
    given = " ".join(f"--extractor {name}" for name in extractors)
    command = f"iet-agc audit --train 'photos/my train' --samples samples{held_out} --flips {given} --out it"
    assert f"{command} iet-agc report it" in case.page.text


def test_what_is_private_of_a_machine_stays_there(tmp_path: Path) -> None:
    names = {"train": "/home/somebody/photos", "samples": "runs/a/samples", "held_out": "/home/somebody/unseen"}
    page = page_of(small(tmp_path / "it", names=names))
    assert "--train photos --samples runs/a/samples --held-out unseen" in page.text
    assert "somebody" not in page.text


def test_tables_can_be_saved_from_the_page_unless_they_are_large(tmp_path: Path) -> None:
    folder = small(tmp_path / "it")
    saved = {str(link["download"]): link["href"] for link in page_of(folder).all("a") if "download" in link}
    assert list(saved) == ["samples.csv", "training-images.csv"]
    for file, address in saved.items():
        assert base64.b64decode(str(address).partition(",")[2]) == (folder.path / file).read_bytes()
    page = page_of(small(tmp_path / "large", samples=20_000, pictures=2))
    assert [link["download"] for link in page.all("a") if "download" in link] == ["training-images.csv"]
    assert "samples.csv , beside audit.json" in page.text


def test_date_versions_and_device_are_told_where_they_are_known(tmp_path: Path) -> None:
    folder = small(tmp_path / "it")
    assert "Audited" not in page_of(folder).text
    made = {"date": "2026-03-01T12:00:00Z", "device": "cpu", "versions": {"iet-agc": "0.1.0", "torch": "2.9.0"}}
    folder.edit(provenance=made)
    assert "Audited 2026-03-01 by iet-agc 0.1.0, torch 2.9.0 on cpu." in page_of(folder).text
    assert "--device cpu --out it" in page_of(folder).text
    folder.edit(provenance=made | {"date": "yesterday"})
    with pytest.raises(ValueError, match=r"provenance\.date: String should match pattern"):
        page_of(folder)


def test_near_copies_in_the_training_set_are_told_where_they_hide_others(tmp_path: Path) -> None:
    folder = small(tmp_path / "it")
    assert "no distance ratio is small there; --groups looks for these." in page_of(folder).text
    none, some = ({"groups": g, "images": i, "largest": n} for g, i, n in ((0, 0, 0), (2, 7, 4)))
    folder.edit(train_copies={"exact": none, "near": some})
    assert "small there; here 7 images are in 2 groups of them, 4 in the largest." in page_of(folder).text
    folder.edit(train_copies={"exact": none, "near": none})
    assert "small there; here there are none." in page_of(folder).text


def test_flat_samples_stand_behind_the_others_and_are_called_flat(tmp_path: Path) -> None:
    train = torch.from_numpy(noise(70, (3, 8, 8), 1))
    train[:3] = torch.tensor([10, 90, 170], dtype=torch.uint8)[:, None, None, None]
    samples = torch.from_numpy(noise(9, (3, 8, 8), 2))
    samples[:3], samples[3:5] = train[:3] + 1, train[3:5]
    samples[0, :, 0, :4] += 9  # a standard deviation of 2.2 of 255
    samples[1, 0, :, ::2] += 11  # one of 5.5, in one channel: not flat
    result = audit(ImageSet(train, "t"), ImageSet(samples, "s"), None, extractors=["pixels"])
    folder = save_audit(result, tmp_path / "it")
    pairs = read_audit("it", folder).pairs
    assert [(pair.row.sample, pair.flat) for pair in pairs][-2:] == [(2, True), (0, True)]
    assert {pair.row.sample for pair in pairs[:3]} == {1, 3, 4}
    text = Page(render({"it": folder})).text
    assert "The last 2 samples are flat." in text
    assert "in no channel have a standard deviation above 2 % of their range" in text


def test_command_says_how_images_were_converted(tmp_path: Path) -> None:
    folder = small(tmp_path / "it", convert_to="3x64x64")
    assert "--flips --extractor pixels --convert-to 3x64x64 --out it" in page_of(folder).text
    folder.edit(conventions=folder.numbers["conventions"] | {"flips": False})
    assert "--held-out held --extractor pixels --convert-to" in page_of(folder).text


def test_table_has_all_nine_cuts(one: Folder) -> None:
    text, numbers = page_of(one).text, one.numbers
    for cut, entry in numbers["mq"].items():
        real = numbers["held_out"]["mq"][cut]
        assert f" {cut} {entry['count']} {shown(entry)} {real['count']} {shown(real)} " in text
    calibrated = numbers["calibrated"]
    assert f" {calibrated['cut']:.3g} calibrated {calibrated['count']} {shown(calibrated)} set on them" in text


def test_other_statistics_stand_with_interval_held_out_direction_and_source(one: Folder) -> None:
    text, numbers = page_of(one).text, one.numbers
    statistics = numbers["statistics"]
    assert f"{statistics['near']['direction']} {shown(statistics['near'])} – " in text
    for key in ("d1_d2", "auth_pct"):
        real = numbers["held_out"]["statistics"][key]
        assert f"{statistics[key]['direction']} {shown(statistics[key])} {shown(real)} " in text
    assert f"{statistics['c_t']['direction']} −12.35 in 3 cells expected −0.98 to +0.98" in text
    for words in statistics.values():
        assert text.count(words["source"]) == text.count(words["convention"]) == 1
    assert text.count("how much farther than held-out images") == 2  # in pixels, and in a feature space


def test_a_statistic_without_held_out_images_is_left_out(tmp_path: Path) -> None:
    words = page_of(small(tmp_path / "a", held_out=0)).words
    assert not {"C_T", "Nearness"} & set(words)
    assert {"AuthPct", "d1/d2 below 1/3"} <= set(words)


def test_quality_has_every_number_and_its_warnings(tmp_path: Path) -> None:
    text = page_of(small(tmp_path / "a", extractor="big-net", spaces=("big-net",))).text
    for line in (
        "Fréchet distance how far the two sets are apart as a whole lower is better 7.125 12.2",
        "KID the same aim; small sets do not bias it lower is better −0.0004 ± 0.0009 0.0321 ± 0.0012",
        "Precision share of samples that lie among real images higher is better 0.750 0.625",
        "Recall share of real images that lie among samples higher is better 0.500 0.375",
        "MiFID Fréchet distance, raised where samples lie too near to real images lower is better 55.5 77.5",
        "Inception score clear and varied; not compared with real images higher is better 4.321 ± 0.123",
        "the Fréchet distance between training and held-out images is 3.500",
        "Warnings The sample set has 32 images for 64 features: its covariance lacks full rank, so ",
        "strongly biased upward. KID to training images: every subset holds all 32 images of the smaller set, so its ",
        "KID 100 subsets of 32 images",
        "Precision and recall k = 3",
        "big-net scaled to 224 pixels",
        "quality: arithmetic float64",
        f"weights big-net sha256 {SHA}",
    ):
        assert text.count(line) == 1, line


def test_missing_numbers_of_quality_are_dashes(one: Folder) -> None:
    warning = {"code": "not_measured", "measures": ["kid_train"], "num_needed": 2, "num_images": 1}
    quality = one.numbers["quality"] | {"frechet_train": None, "kid_train": None, "warnings": [warning]}
    one.edit(quality=quality | {"precision_train": None, "precision_held_out": None})
    text = page_of(one).text
    assert "as a whole lower is better – 12.2 KID" in text
    assert "do not bias it lower is better – 0.0321 ± 0.0012" in text
    assert "Warning. KID to training images: not measured, since 2 images are needed and a set has 1. " in text
    assert text.count("Precision share of samples") == 1  # that of the feature space


def test_feature_space_says_what_it_found(tmp_path: Path) -> None:
    folder = write_audit(tmp_path / "a", samples=400, copies=0, spaces=("net",), record=False)
    text, found = page_of(folder).text, folder.numbers["feature_spaces"]["net"]
    figures = "copied, below the calibrated cut 0 % expected by chance 1 % equal to a training image 0"
    assert f"No copying beyond chance shown {figures} 0 of 400 samples" in text
    assert "In the features of net: no copying beyond chance shown, 0 % (95 % interval 0 to 1.0 %)." in text
    half = {"count": 200, "share": 0.5, "ci95": [0.45, 0.55]}
    spaces = {"net": found | {"calibrated": found["calibrated"] | half}}
    folder.edit(feature_spaces=spaces)
    text = page_of(folder).text
    assert "Copies found in the features of net, the share in pixels is not shown to exceed chance" in text
    assert "In the features of net: copies found, 50.0 % (95 % interval 45.0 to 55.0 %)." in text
    assert "Copies found. 200 of 400 samples (50.0 %, 95 % interval 45.0 to 55.0 %) are closer to one" in text
    assert 'class="verdict copies"' in render({"it": folder.path})


def test_most_copied_images_name_the_samples_that_copied_them(tmp_path: Path) -> None:
    folder = small(tmp_path / "a", train=3, samples=30, copies=26)
    text = page_of(folder).text
    assert "copied 9× by samples 0, 3, 6, 9, 12, 15 and 3 more training image 0 present 4×" in text
    assert "copied 8× by samples 2, 5, 8, 11, 14, 17 and 2 more training image 2" in text
    text = page_of(small(tmp_path / "b", copies=1)).text
    assert "copied 1× by sample 0 training image 0" in text
    assert "copied 0×" not in text
    assert "No sample is below the cut" in page_of(small(tmp_path / "c", copies=0)).text


def test_all_that_was_compared_is_named_with_its_hash(one: Folder) -> None:
    text = page_of(one).text
    assert f"samples 32, samples sha256 {SHA[::-1]}" in text
    assert f"training images 76 (70 unique), photos/my train sha256 {SHA}" in text
    assert f"held-out images 300, held sha256 {SHA}" in text
    assert f"weights efficientnet-lite0 sha256 {SHA}" in text


def test_names_are_escaped_everywhere(tmp_path: Path) -> None:
    bad = "$\\frac$<script>alert(1)</script>"  # the first part is no valid mathtext
    names = {"train": bad, "samples": "'\"", "held_out": ""}
    curves = {bad: points(1), "member-0001": points(2)}
    folder = write_audit(tmp_path / "a", names=names, curves=curves, spaces=(bad,)).path
    text = render({bad: folder, "b": folder}, title=bad)
    assert text.count("<script") == 1
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)" in text
    Page(text)


# What the audit doubts, and files -----------------------------------------------------------------------


def test_what_the_audit_does_not_trust_stands_in_the_verdict(tmp_path: Path) -> None:
    folder = small(tmp_path / "a", samples=400, copies=1, exact=False, spaces=("net",), warned=True)
    text, words = page_of(folder).text, page_of(folder).words
    assert "No copying beyond chance shown, but not without warning" in words
    assert f"Warnings {NEAR_COPIES.sentence}. In the features of net: {NO_CUT.sentence}. copied, below" in text
    assert "In the features of net: cannot tell, " in text
    assert "Cannot tell. " in text
    assert f"Warning. {NO_CUT.sentence}. No cut could be set on the 300 held-out images, so" in text
    assert 'class="verdict undecided"' in render({"it": folder.path})
    found = page_of(small(tmp_path / "b", warned=True)).words
    assert "Copies found, but not without warning" in found
    exact = page_of(small(tmp_path / "c", samples=400, copies=1, warned=True)).words
    assert "1 exact copy found, the share in pixels is not shown to exceed chance, but not without warning" in exact
    assert "without warning" not in page_of(small(tmp_path / "d", spaces=("net",))).text


def test_no_cut_in_pixels_is_explained_by_the_warning(tmp_path: Path) -> None:
    folder = small(tmp_path / "a", samples=400, copies=0)
    folder.edit(calibrated=None, warnings=[warning.model_dump() for warning in (NO_CUT, NEAR_COPIES)])
    text = page_of(folder).text
    assert f"Cannot tell Warnings {NO_CUT.sentence}. " in text
    assert "No cut could be set on the 300 held-out images, so it is not known" in text


def test_files_are_named_beside_pairs_and_training_images(tmp_path: Path) -> None:
    folder = write_audit(tmp_path / "a", spaces=(), files="a<b>&/", curves={})
    text = page_of(folder).text
    assert "ratio 0.025 , seed 1002 sample: a<b>&/s/2.png training image: a<b>&/t/2.png" in text
    assert "copied 1× by sample 3 training image 3 a<b>&/t/3.png" in text
    assert "training image 0 a<b>&/t/0.png present 4×" in text
    assert "4 of 10 times seen training image 4 a<b>&/t/4.png" in text
    pair = read_audit("it", folder.path).pairs[3]
    assert (pair.row.file, pair.row.nearest_file) == ("a<b>&/s/3.png", "a<b>&/t/3.png")
    assert 'class="file"' not in render({"it": small(tmp_path / "b").path})


# Several audits -----------------------------------------------------------------------------------------


def test_several_audits_are_compared(tmp_path: Path) -> None:
    folders = {
        "copies": small(tmp_path / "a").path,
        "plain": small(tmp_path / "b", held_out=0, copies=0).path,
    }
    page = Page(render(folders))
    assert "Comparison" in page.text
    held_out = "The held-out set differs (300 images in copies; 0 images in plain): calibrated cuts and distances to"
    assert f"Warning. {held_out} held-out images do not compare. The copied share" in page.text
    links = [link["href"] for link in page.all("a") if "download" not in link]
    assert links == ["#comparison", *["#audit-1", "#audit-2"] * 2]  # the contents, and both verdicts
    assert {"audit-1", "audit-2"} <= {section.get("id") for section in page.all("section")}
    assert "No sample is below the cut 0.15." in page.text
    assert "Copied: below the cut 0.15, as not every audit is calibrated." in page.text
    assert "differs (" not in Page(render({"a": folders["copies"], "b": folders["copies"]})).text


def test_difference_of_two_audits_has_an_interval(tmp_path: Path) -> None:
    """8 of 32 against 0 of 32 and 9 of 32, by the formulas of Wilson and Newcombe, worked out beforehand."""
    folders = {str(copies): small(tmp_path / str(copies), copies=copies).path for copies in (8, 0, 9)}
    text = Page(render(folders)).text
    assert "The copied share of 0 is 25.0 percentage points lower than that of 8 (95 % interval 9.1 to 42.1)." in text
    differs = "are not shown to differ: {} percentage points (95 % interval {})."
    assert f"The copied shares of 9 and 8 {differs.format('3.1', '−18.1 to 24.0')}" in text
    text = Page(render(dict(reversed(folders.items())))).text
    assert f"The copied shares of 8 and 9 {differs.format('−3.1', '−24.0 to 18.1')}" in text
    text = Page(render({"0": folders["0"], "8": folders["8"]})).text
    assert "The copied share of 8 is 25.0 percentage points higher than that of 0 (95 % interval 9.1 to 42.1)." in text
    assert "Copied: below the calibrated cut of each audit." in text


def test_same_audit_gives_the_same_bytes(one: Folder, tmp_path: Path) -> None:
    first = write_report({"it": one.path}, tmp_path / "new" / "report.html")
    again = write_report({"it": one.path}, tmp_path / "again.html")
    assert first.read_bytes() == again.read_bytes()
    assert [file.name for file in first.parent.iterdir()] == ["report.html"]
    assert str(tmp_path) not in first.read_text()


# What the numbers allow to say --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("held_out", "low", "label"),
    [
        (497, 0.05, "Copies found"),
        (497, 0.015, "Undecided"),  # the 4th smallest of 497: the true rate may be 1.8 %
        (497, 0.01, "No copying beyond chance shown"),
        (497, 0.0, "No copying beyond chance shown"),
        (100, 0.03, "Undecided"),  # the smallest of 100: the true rate may be 3.6 %
        (100, 0.04, "Copies found"),
    ],
)
def test_verdict_claims_no_more_than_is_known(tmp_path: Path, held_out: int, low: float, label: str) -> None:
    folder = small(tmp_path / "audit", held_out=held_out, exact=False)
    folder.edit(calibrated=folder.numbers["calibrated"] | {"ci95": [low, 0.9]})
    page = page_of(folder)
    assert label in page.words
    assert (
        f"may be up to {'1.8' if held_out == 497 else '3.6'} %" in page.text
    )  # Clopper and Pearson's table: 0 of 20 gives 0.1684
    assert ("a share of 90.0 % is not ruled out" in page.text) == (label == "No copying beyond chance shown")


def test_upper_end_of_false_alarms_is_clopper_and_pearsons(tmp_path: Path) -> None:
    """Of 99 held-out images the cut is the smallest: none is below it, and 1 - 0.025^(1/99) = 3.66 % may be."""
    found = read_audit("it", small(tmp_path / "a", held_out=99).path).numbers.calibrated
    assert found is not None
    assert found.most_false_alarms == pytest.approx(1 - 0.025 ** (1 / 99))


def test_exact_copies_are_told_whatever_the_share_is(tmp_path: Path) -> None:
    folder = small(tmp_path / "audit", samples=400, copies=1)
    page = page_of(folder)
    assert "1 exact copy found, the share in pixels is not shown to exceed chance" in page.words
    assert "1 sample equals a training image pixel by pixel, mirrored or not." in page.words
    assert "a share of 1.4 % is not ruled out, and single copies may be among the closest pairs." in page.text
    file = folder.path / "samples.csv"
    file.write_text(file.read_text().replace(",0.5,", ",0.0,"))
    assert "400 exact copies found, the share in pixels is not shown to exceed chance" in page_of(folder).words
    assert "equal a training image" not in page_of(small(tmp_path / "b", exact=False)).text


def test_few_held_out_images_cannot_calibrate(tmp_path: Path) -> None:
    page = page_of(small(tmp_path / "audit", held_out=98, exact=False))
    assert "Cannot tell" in page.words
    assert "8 of 32 samples" in page.text
    assert "Only 98 held-out images were given, too few" in page.text
    assert "expected by chance" not in page.text


@pytest.mark.parametrize(
    ("copies", "share"), [(0, "0 of 32 samples (0 %, 95 % interval 0 to 10.7 %)"), (32, "32 of 32")]
)
def test_none_and_all_copied(tmp_path: Path, copies: int, share: str) -> None:
    text = page_of(small(tmp_path / "audit", copies=copies)).text
    assert share in text
    assert ("None is below" if copies == 0 else "All are below") in text


def test_one_copy_is_spoken_of_in_the_singular(tmp_path: Path) -> None:
    text = page_of(small(tmp_path / "audit", copies=1)).text
    assert "1 of 32 samples (3.1 %, 95 % interval 0.6 to 15.7 %) is closer" in text
    assert "The first is below" in text


# Size ---------------------------------------------------------------------------------------------------


def test_nothing_skipped_draws_no_skip_rate(tmp_path: Path) -> None:
    folder = write_audit(tmp_path / "a", curves={"member-0001": points(1, skip_rate=0.0), "member-0002": []}, spaces=())
    page = page_of(folder)
    assert len(page.all("svg")) == 4
    assert "No sample was skipped." in page.text


def test_many_members_and_long_curves_stay_small(tmp_path: Path) -> None:
    long = [points(1)[0] | {"images_seen": number} for number in range(1, 4001)]
    folder = small(tmp_path / "a", record=True, curves={f"member-{m:04d}": long for m in range(10)})
    text = render({"it": folder.path})
    assert "one line for each of 10 members" in text
    assert len(text) < 1_500_000


@pytest.mark.parametrize("train", [7_000, 1], ids=["many", "one image copied by all"])
def test_the_papers_size_stays_small(tmp_path: Path, train: int) -> None:
    folder = small(tmp_path / "a", shape=(3, 8, 8), samples=65_536, copies=65_536, held_out=10_000, train=train)
    file = write_report({"it": folder.path}, tmp_path / "report.html")
    assert file.stat().st_size < 1_500_000


def test_large_pictures_are_shrunk(one: Folder) -> None:
    with np.load(one.path / "pictures.npz") as pictures:
        large = {
            key: array.repeat(40, 2).repeat(35, 3) if array.ndim == 4 else array for key, array in pictures.items()
        }
    np.savez(one.path / "pictures.npz", **large)  # 320 high, 280 wide
    text = render({"it": one.path})
    page = Page(text)
    drawn = Image.open(io.BytesIO(base64.b64decode(str(page.all("img")[0]["src"]).partition(",")[2])))
    assert drawn.size == (224, 256)
    assert "Pictures are made smaller here." in page.text
    assert len(text) < 4_000_000


# Damage -------------------------------------------------------------------------------------------------


def drop_row(file: Path) -> None:
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))


def change(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def change_in(file: Path, key: str, **changes: Any) -> None:
    change(file, **{key: json.loads(file.read_text())[key] | changes})


def replace_held_out_ratios(file: Path, ratios: NDArray[np.float64]) -> None:
    with np.load(file) as pictures:
        parts: dict[str, Any] = dict(pictures) | {"held_out_ratios": ratios}
    np.savez(file, **parts)


DAMAGES: list[tuple[str, Callable[[Path], object]]] = [
    ("audit.json", lambda file: file.write_text('{"version": 2,')),
    ("audit.json", lambda file: file.write_text("[]")),
    ("audit.json", lambda file: file.write_text('{"version": 2}')),
    ("audit.json", lambda file: file.write_text("[" * 100_000)),
    ("audit.json", lambda file: file.write_bytes(b"\xff\xfe")),
    ("audit.json", lambda file: file.write_text(file.read_text().replace("null", "[" * 9999 + "]" * 9999))),
    ("audit.json", lambda file: change(file, num_train=10**4200)),
    ("audit.json", lambda file: change(file, news=1)),
    ("audit.json", lambda file: change(file, num_train="many")),
    ("audit.json", lambda file: change(file, calibrated={"cut": None})),
    ("audit.json", lambda file: change_in(file, "calibrated", cut=-0.1)),
    ("audit.json", lambda file: change_in(file, "calibrated", false_alarm=0.001)),
    ("audit.json", lambda file: change(file, mq={})),
    ("audit.json", lambda file: change(file, conventions=3)),
    ("audit.json", lambda file: change(file, warnings="few")),
    ("audit.json", lambda file: change(file, warnings=[1])),
    ("audit.json", lambda file: change(file, num_held_out_repeated="two")),
    ("audit.json", lambda file: change(file, names={})),
    ("audit.json", lambda file: change(file, names=None)),
    ("audit.json", lambda file: change(file, warnings=[{"code": "no_cut"}])),
    ("audit.json", lambda file: change(file, warnings=[{"code": "other"}])),
    ("audit.json", lambda file: change_in(file, "statistics", d1_d2={"share": 0.5})),
    ("audit.json", lambda file: change_in(file, "statistics", c_t={"value": "low", "cells": 1})),
    ("audit.json", lambda file: change(file, feature_spaces={"net": {}})),
    ("audit.json", lambda file: change(file, feature_spaces=["net"])),
    ("audit.json", lambda file: change_in(file, "quality", kid_train={"mean": 0.5})),
    ("audit.json", lambda file: change_in(file, "quality", mifid_train="low")),
    ("audit.json", lambda file: change_in(file, "quality", warnings="few")),
    ("audit.json", lambda file: change(file, quality={"extractor": "pixels", "few_images": False})),
    ("samples.csv", drop_row),
    ("samples.csv", lambda file: file.write_text(file.read_text().replace("ratio", "number"))),
    ("samples.csv", lambda file: file.write_text(re.sub(r"(\n9,1009,)[^,]*", r"\g<1>0.01", file.read_text()))),
    *(
        ("samples.csv", lambda file, old=old, new=new: file.write_text(re.sub(old, new, file.read_text())))
        for old, new in (
            (r"(\n9,1009,[^,]*,9,)[^,]*", r"\g<1>nan"),
            (r"(\n9,1009,[^,]*,9,)[^,]*", r"\g<1>-0.5"),
            (r"(\n9,1009,)[^,]*", r"\g<1>nan"),
            (r"(\n9,1009,)[^,]*", r"\g<1>7.5"),
            (r"(\n9,1009,[^,]*,)9", r"\g<1>-9"),
            (r"\n9,1009,", r"\n8,1009,"),
            (r"(\n9,1009,[^,]*,9,[^,]*,)0", r"\g<1>maybe"),
        )
    ),
    ("training-images.csv", lambda file: file.write_text(file.read_text().replace("\n5,1,1,", "\n5,-1,1,"))),
    ("training-images.csv", lambda file: file.write_text(file.read_text().replace(",10,4,", ",3,4,"))),
    ("training-images.csv", drop_row),
    ("training-images.csv", lambda file: file.unlink()),
    ("training-images.csv", lambda file: file.write_text(file.read_text().replace("\n5,1,1,", "\n5,1,many,"))),
    ("pictures.npz", lambda file: file.write_bytes(file.read_bytes()[:200])),
    ("pictures.npz", lambda file: file.write_bytes(b"")),
    ("pictures.npz", lambda file: np.savez(file, worst=np.arange(3))),
    ("pictures.npz", lambda file: replace_held_out_ratios(file, np.empty(0))),
    ("pictures.npz", lambda file: replace_held_out_ratios(file, np.full(300, np.nan))),
    ("curves.json", lambda file: file.write_text('{"member-0001": [{"step": 1}]}')),
    ("curves.json", lambda file: file.write_bytes(b"\xff\xfe")),
    ("curves.json", lambda file: file.write_text(file.read_text().replace('"loss": ', '"loss": "low", "was": '))),
    ("curves.json", lambda file: file.write_text(file.read_text().replace('"loss": ', '"loss": NaN, "was": '))),
]


@pytest.mark.parametrize(("name", "damage"), DAMAGES)
def test_damaged_folder_is_refused_in_one_line(tmp_path: Path, name: str, damage: Callable[[Path], object]) -> None:
    one = write_audit(tmp_path / "audit", pictures=10)
    file, before = one.path / name, (one.path / name).read_bytes()
    damage(file)
    assert not file.exists() or file.read_bytes() != before
    with pytest.raises(ValueError, match=r"run the same 'iet-agc audit' again") as caught:
        render({"it": one.path})
    message = str(caught.value)
    assert message.startswith(str(file))
    assert "\n" not in message


def test_tables_that_contradict_each_other_are_refused(one: Folder) -> None:
    file = one.path / "training-images.csv"
    file.write_text(file.read_text().replace("\n5,1,1,", "\n5,1,2,"))
    with pytest.raises(ValueError, match=r"1 samples copied training image 5, training-images.csv counts 2"):
        render({"it": one.path})


def test_absent_other_and_no_audits(one: Folder, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / 'no' / 'audit.json'} is not there: give a folder")):
        render({"it": tmp_path / "no"})
    one.edit(version=1)
    with pytest.raises(ValueError, match="version 1, this iet-agc reads 2: run the same 'iet-agc audit' again"):
        write_report({"it": one.path}, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()
    with pytest.raises(ValueError, match="at least one audit"):
        render({})


def test_a_page_that_cannot_be_written_is_refused_and_leaves_nothing(one: Folder, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    with pytest.raises(ValueError, match=r"taken is a folder, and the page is one file: name a file, such as "):
        write_report({"it": one.path}, taken)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match=r"page\.html cannot be written: .*/file is a file, not a folder"):
        write_report({"it": one.path}, tmp_path / "file" / "deep" / "page.html")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["audit", "file", "taken"]
    assert not list(taken.iterdir())
    assert (tmp_path / "file").read_text() == "mine"


def test_only_a_report_of_ours_is_replaced(one: Folder, tmp_path: Path) -> None:
    file = write_report({"it": one.path}, tmp_path / "report.html")
    page = file.read_bytes()
    (tmp_path / "link.html").symlink_to(file)
    assert write_report({"it": one.path}, tmp_path / "link.html").is_symlink()
    assert (file.is_symlink(), file.read_bytes()) == (False, page)
    (tmp_path / "mine.html").write_text("<html>mine</html>")
    for own in (one.path / "audit.json", one.path / "samples.csv", tmp_path / "mine.html"):
        before = own.read_bytes()
        with pytest.raises(ValueError, match=f"{own.name} is there and is no report of ours: choose another"):
            write_report({"it": one.path}, own)
        assert own.read_bytes() == before
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "lost").symlink_to(tmp_path / "nowhere")
    for odd in (tmp_path / "pipe", tmp_path / "lost", Path(os.devnull)):
        with pytest.raises(ValueError, match=f"{odd.name} is there and is no regular file: choose another output"):
            write_report({"it": one.path}, odd)
    assert ((tmp_path / "pipe").is_fifo(), (tmp_path / "lost").is_symlink(), Path(os.devnull).is_char_device()) == (
        True, True, True,
    )  # fmt: skip


# With the audit -----------------------------------------------------------------------------------------


def test_an_audit_as_it_is_written_becomes_a_page(tmp_path: Path) -> None:
    """Folders made to order could differ from what `audit` makes; this one does not."""
    train, samples, held_out = (torch.from_numpy(noise(count, (1, 8, 8), count)) for count in (70, 32, 300))
    samples[:8] = train[:8]
    samples[0] = train[0].flip(-1)
    sets = ImageSet(train, "digits"), ImageSet(samples, "samples"), ImageSet(held_out, "held")
    result = audit(*sets, flips=True, extractors=["pixels"], seeds=range(1000, 1032))
    folder = save_audit(result, tmp_path / "it", {"train": "digits", "samples": "samples", "held_out": "held"})
    page = Page(render({"it": folder}))
    assert "8 of 32 samples (25.0 %, 95 % interval 13.3 to 42.1 %) are closer" in page.text
    assert "ratio 0 , seed 1000 mirrored" in page.text
    assert np.array_equal(decode(page.all("img")[1]["src"], (1, 8, 8)), train[0].numpy())
    assert "copied 1× by sample 0 training image 0" in page.text
    for title in ("d1/d2 below 1/3", "AuthPct", "C_T", "Fréchet distance", "KID", "Precision", "Recall", "MiFID"):
        assert title in page.words
    assert "--train digits --samples samples --held-out held --flips --extractor pixels --out it" in page.text


def test_what_is_not_drawn_changes_nothing_else(tmp_path: Path) -> None:
    folder = small(tmp_path / "a")
    drawn = render({"a": folder.path})
    with undrawn():
        text = render({"a": folder.path})
    assert render({"a": folder.path}) == drawn
    assert re.search(r"<path|data:image/png;base64,\w", drawn)
    assert not re.search(r"<path|data:image/png;base64,\w", text)
    both = (re.sub(r"(?s)<svg.*?</svg>|data:image/[^\"']*", "", each) for each in (drawn, text))
    assert len({*both}) == 1


@pytest.mark.parametrize(("module", "free"), [("iet_agc.reporting.audit_page", True), ("iet_agc.runtime.seeds", False)])
def test_report_imports_no_torch(module: str, free: bool) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules or 'matplotlib.pyplot' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, check=False
    )
    assert (done.returncode == 0) == free, done.stderr


def test_false_alarms_follow_from_the_images_that_set_the_cut(tmp_path: Path) -> None:
    """Of 497 held-out images 398 are near copies and set no cut: the other 99 are what is known."""
    folder = small(tmp_path / "a", held_out=497)
    folder.edit(calibrated=folder.numbers["calibrated"] | {"num_held_out": 99})
    found = read_audit("it", folder.path).numbers.calibrated
    assert found is not None
    assert found.most_false_alarms == pytest.approx(1 - 0.025 ** (1 / 99))
    assert "was set on 99 held-out images" in page_of(folder).text
    folder.edit(calibrated=folder.numbers["calibrated"] | {"num_held_out": 98})
    with pytest.raises(ValueError, match="damaged"):
        read_audit("it", folder.path)


# The gate -------------------------------------------------------------------------------------------------


def gated(folder: Folder, fail_above: float) -> Folder:
    """An audit that was asked to fail above a share."""
    numbers = AuditRecord.model_validate_json((folder.path / "audit.json").read_bytes())
    folder.edit(gate=gate({PIXELS: numbers.calibrated}, fail_above).model_dump(mode="json"))
    return folder


def test_a_failed_gate_is_the_one_verdict(tmp_path: Path) -> None:
    """5 of 100 samples: by the shares alone it is undecided, but it is more than 1 % by the draw of the cut, too."""
    folder = small(tmp_path / "a", samples=100, copies=5, exact=False)
    assert "Undecided" in page_of(folder).text
    text = page_of(gated(folder, 0.01)).text
    assert "Check failed: more than 1 % copied, chance included" in text
    assert "Check failed: 5 of 100 samples are below the calibrated cut (5%; at least " in text
    assert "it fails in at most 2.5% of draws where the share is 1%, in " in text
    assert "where nothing is copied." in text
    assert "--fail-above 0.01" in text
    for other in ("Undecided", "beyond chance shown", "to decide"):
        assert other not in text
    text = page_of(gated(folder, 0.5)).text
    assert "Check passed: 5 of 100 samples are below the calibrated cut" in text
    assert "not shown to be more than 50%" in text
    assert (
        "Check passed: not shown to be more than 50 % copied, chance included copied, below the calibrated cut 5.0 %"
        in text
    )
    assert "Undecided" not in text


def test_a_failed_gate_says_nowhere_that_nothing_is_shown(tmp_path: Path) -> None:
    """One sample of 100 is what chance makes, and more than the 0 % that are allowed."""
    folder = small(tmp_path / "a", samples=100, copies=1, exact=False)
    assert "copying beyond that is not shown" in page_of(folder).text
    text = page_of(gated(folder, 0)).text
    assert "Check failed: more than 0 % copied" in text
    assert "beyond that is not shown" not in text


def test_what_a_gate_did_not_look_at_leaves_nothing_open_beside_it(tmp_path: Path) -> None:
    """In a feature space, too, 5 of 100 are below the cut, which by itself is undecided."""
    folder = small(tmp_path / "a", samples=100, copies=5, exact=False, spaces=("net",))
    assert "In the features of net: undecided, 5.0 %" in page_of(folder).text
    text = page_of(gated(folder, 0.01)).text
    assert "In the features of net: not checked, 5.0 %" in text
    assert "Not checked. 5 of 100 samples" in text
    assert "ndecided" not in text


def test_a_failed_gate_names_what_was_found_besides(tmp_path: Path) -> None:
    folder = gated(small(tmp_path / "a"), 0.02)
    assert "Check failed: more than 2 % copied, chance included; copies found" in page_of(folder).text


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"failed": False}, "a gate's failed is False, with 1 checks"),
        ({"checks": []}, "a gate's failed is True, with 0 checks"),
        ({"fail_above": 1.5}, "gate.fail_above: Input should be less than or equal to 1, not 1.5"),
        ({"fail_above": 0.9}, "a check's failed is True"),
        ({"risk": "low"}, "gate.risk: Input should be a valid number, not 'low'"),
    ],
)
def test_a_gate_that_cannot_be_is_damaged(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    folder = gated(small(tmp_path / "a"), 0.02)
    folder.edit(gate=folder.numbers["gate"] | changes)
    with pytest.raises(ValueError, match=rf"audit.json is damaged: .*{re.escape(reason)}"):
        page_of(folder)


def test_a_check_of_a_gate_counts_what_its_share_says(tmp_path: Path) -> None:
    entry = (folder := gated(small(tmp_path / "a"), 0.02)).numbers["gate"]
    entry["checks"][0]["count"] += 1
    folder.edit(gate=entry)
    with pytest.raises(ValueError, match=r"a gate's share is 0.25, and its count is 9 of 32"):
        page_of(folder)
