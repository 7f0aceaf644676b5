"""The page of an audit of samples with prompts: similarities, the most similar pairs, alignment, CLIP score."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from iet_agc.auditing.compute import audit
from iet_agc.auditing.run import save_audit
from iet_agc.auditing.schema import read_record
from iet_agc.data.image_set import ImageSet
from iet_agc.metrics.gate import PIXELS, Way, gate
from iet_agc.metrics.intervals import Mean, share
from iet_agc.metrics.records import AboutPrompts, ClipScore
from iet_agc.reporting.audit_page import render
from iet_agc.reporting.reader import read_audit
from tests.pages import Page
from tests.similar_images import DETECTOR, FRESH, HELD_OUT, NETWORK, TRAIN

CAPTIONS = tuple((f"<b>dog</b> & hat {number}", "a & b") for number in range(len(TRAIN)))
CLIP = AboutPrompts(
    model="clip<folder>",
    sha256="a" * 64,
    num_prompts=60,
    num_cut_off=3,
    score=ClipScore(mean=25.5, ci95=(25.0, 26.0)),
    other_prompts=Mean(mean=20.0, ci95=(19.0, 21.0)),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copies 7 and 11 by their own prompts, of lower contrast; others by prompts of others."""
    copies = (TRAIN[[7, 11]].float() * 0.2 + 102).to(torch.uint8)
    prompts = tuple((CAPTIONS[n][0],) for n in (7, 11, *range(60)))
    samples = ImageSet(torch.cat([copies, FRESH]), "samples", captions=prompts)
    train = ImageSet(TRAIN, "train", captions=CAPTIONS)
    result = audit(train, samples, ImageSet(HELD_OUT, "real"), extractors=[DETECTOR, NETWORK], seeds=range(100, 162))
    result = replace(result, numbers=result.numbers.model_copy(update={"clip": CLIP}))
    return save_audit(result, tmp_path_factory.mktemp("audit") / "a")


def unsealed_numbers(folder: Path) -> dict[str, Any]:
    """The content of an audit.json, for changes that its seal would tell."""
    return {key: value for key, value in json.loads((folder / "audit.json").read_text()).items() if key != "seal"}


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page(render({"it": folder}))


def test_prompts_and_captions_stand_escaped_beside_the_most_similar_pairs(page: Page, folder: Path) -> None:
    assert "sample 0 training image 7 similarity 0.99" in page.text
    assert "seed 100 prompt: <b>dog</b> & hat 7 caption: the same" in page.text
    assert "sample 1 training image 11 similarity 0.99" in page.text
    assert "<b>dog" not in render({"it": folder})
    pairs = read_audit("it", folder).alike["sscd.pt"].pairs
    assert len({pair.nearest for pair in pairs}) == len(pairs) == 24
    assert np.array_equal(pairs[0].original, TRAIN[pairs[0].nearest].numpy())
    other = next(pair for pair in pairs if pair.sample > 1)
    assert (other.prompt, other.caption) == (
        f"<b>dog</b> & hat {other.sample - 2}",
        f"<b>dog</b> & hat {other.nearest}",
    )


def test_pairs_in_pixels_have_their_prompts_too(folder: Path) -> None:
    for pair in read_audit("it", folder).pairs:
        at = pair.sample - 2 if pair.sample > 1 else (7, 11)[pair.sample]
        assert (pair.prompt, pair.caption) == (f"<b>dog</b> & hat {at}", f"<b>dog</b> & hat {pair.nearest}")


def test_the_page_says_what_audit_json_says_of_similarity(page: Page, folder: Path) -> None:
    space = unsealed_numbers(folder)["feature_spaces"]["sscd.pt"]["similarity"]
    for images in ("samples", "train", "held_out"):
        p95 = space[images]["p95"]
        assert (
            f"{p95['value']:.3f} {p95['ci95'][0]:.3f} to {p95['ci95'][1]:.3f} {space[images]['mean']['mean']:.3f}"
            in (page.text)
        )
    assert f"above {space['calibrated']['cut']:.3f}; " in page.text
    assert page.text.count("By similarity in the features of") == 1  # only of descriptors made to find copies
    assert "count as a replication where the descriptor is SSCD's" in page.text
    assert "0.5 is a threshold for SSCD's descriptors; in these features it means nothing by itself" in page.text


def test_alignment_and_clip_score_are_told(page: Page) -> None:
    assert "Prompt alignment" in page.text
    assert "training images 62 samples, 120 images of distinct captions" in page.text
    assert "by chance 50.0 %" in page.text
    assert (
        "25.5 (95 % interval 25.0 to 26.0): 100 times the cosine of image and prompt by clip<folder>, of 60"
        in page.text
    )
    assert "With the other prompts it is 20.0. Of 3 samples the network has seen the beginning" in page.text
    assert "--clip 'clip<folder>'" in page.text


def test_the_page_says_how_many_images_the_prompts_are_about(page: Page, folder: Path, tmp_path: Path) -> None:
    assert (
        "samples 62 (different prompts: 60, captions of 60 of 120 unique training images), samples sha256" in page.text
    )
    shutil.copytree(folder, tmp_path / "b")
    numbers = unsealed_numbers(folder)
    (tmp_path / "b" / "audit.json").write_text(json.dumps(numbers | {"prompts": None}))
    assert "samples 62, samples sha256" in Page(render({"it": tmp_path / "b"})).text
    (tmp_path / "b" / "audit.json").write_text(json.dumps(numbers | {"prompts": {"num_prompts": "60"}}))
    with pytest.raises(ValueError, match=r"prompts\.num_prompts: Input should be a valid integer, not '60'"):
        read_audit("it", tmp_path / "b")


def test_similarities_that_disagree_with_the_numbers_are_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "b")
    numbers = unsealed_numbers(folder)
    above = numbers["feature_spaces"]["sscd.pt"]["similarity"]["samples"]["above"]
    above |= share(above["count"] + 1, numbers["num_samples"]).model_dump()
    (tmp_path / "b" / "audit.json").write_text(json.dumps(numbers))
    with pytest.raises(ValueError, match=r"similarities of sscd.pt are above the threshold, audit.json counts"):
        read_audit("it", tmp_path / "b")


def test_a_gate_has_the_verdict_by_similarity_where_that_is_open(folder: Path, tmp_path: Path) -> None:
    """4 of 62 samples are above the cut of the detector: by themselves undecided, but more than 1 % may be."""
    shutil.copytree(folder, tmp_path / "a")
    file, numbers = tmp_path / "a" / "audit.json", unsealed_numbers(folder)
    numbers["calibrated"] |= share(0, 62).model_dump()
    numbers["feature_spaces"][DETECTOR.name]["similarity"]["calibrated"] |= share(4, 62).model_dump()
    file.write_text(json.dumps(numbers))
    record, says = read_record(file), []
    shares = {
        PIXELS: record.calibrated,
        Way(DETECTOR.name, "similarity"): record.feature_spaces[DETECTOR.name].similarity.calibrated,
    }
    for entry in (None, gate(shares, 0.01), gate(shares, 0.5)):
        file.write_text(json.dumps(numbers | {"gate": entry and entry.model_dump()}))
        text = Page(render({"it": tmp_path / "a"})).text
        says.append(text.partition(f"By similarity in the features of {DETECTOR.name}: ")[2].partition(".")[0])
        assert ("ndecided" in text) == (entry is None)
    assert says == ["undecided", "check failed", "check passed"]
