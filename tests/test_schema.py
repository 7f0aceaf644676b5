"""The record of an audit: what cannot be is refused where it is made, and its JSON Schema is published."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from iet_agc.auditing.compute import audit
from iet_agc.auditing.run import save_audit
from iet_agc.auditing.schema import AuditRecord, json_schema, read_record
from iet_agc.data.image_set import ImageSet
from iet_agc.metrics.intervals import Mean, Proportion, clustered_share, share
from iet_agc.metrics.records import Calibrated, FewImages, NotMeasured
from tests.audit_folders import noise, write_audit

DOCUMENT = Path(__file__).parents[1] / "docs" / "audit.schema.json"


def test_the_published_schema_is_that_of_the_record() -> None:
    """Make it anew by `python -m iet_agc.auditing.schema > docs/audit.schema.json`."""
    assert DOCUMENT.read_text(encoding="utf-8") == json_schema()


def test_an_audit_is_written_and_read_without_loss(tmp_path: Path) -> None:
    train, samples, held_out = (torch.from_numpy(noise(count, (1, 4, 4), count)) for count in (30, 20, 120))
    sets = ImageSet(train, "t"), ImageSet(samples, "s", captions=(("a",), ("b",)) * 10), ImageSet(held_out, "h")
    result = audit(*sets, extractors=["pixels"], fail_above=0.1)
    numbers = read_record(save_audit(result, tmp_path / "a") / "audit.json")
    assert numbers.model_copy(update={"names": None}) == result.numbers
    written = json.loads((tmp_path / "a" / "audit.json").read_text())
    assert list(written)[:2] == ["version", "num_samples"]
    assert set(written) == set(json.loads(json_schema())["properties"])
    assert written["mq"]["0.15"]["clusters"] == 2
    assert "clusters" not in written["held_out"]["mq"]["0.15"]


def test_a_record_is_never_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        share(1, 2).count = 2  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"count": 5}, "a share is 0.25, and its count is 5 of 4"),
        ({"share": float("nan")}, "finite number"),
        ({"ci95": (0.3, 0.5)}, "a share of 0.25 has the interval from 0.3 to 0.5"),
        ({"ci95": (0.5, 0.1)}, "an interval from 0.5 to 0.1"),
        ({"total": 0}, "greater than or equal to 1"),
        ({"count": True}, "valid integer"),
        ({"count": 1.0}, "valid integer"),
        ({"design_effect": 2.0}, "None clusters, the design effect 2.0"),
        ({"more": 1}, "not permitted"),
    ],
)
def test_a_share_that_cannot_be_is_refused(changes: dict[str, object], reason: str) -> None:
    entry = {"count": 1, "total": 4, "share": 0.25, "ci95": (0.0, 0.75)}
    assert Proportion.model_validate(entry).count == 1
    with pytest.raises(ValidationError, match=reason):
        Proportion.model_validate(entry | changes)


def test_a_cut_that_held_out_images_cannot_set_is_refused() -> None:
    entry: dict[str, Any] = dict(share(1, 4)) | {"false_alarm": 0.01, "cut": 0.1}
    assert Calibrated(**entry, num_held_out=99).most_false_alarms == pytest.approx(1 - 0.025 ** (1 / 99))
    with pytest.raises(ValidationError, match=r"98 held-out images set no cut of 0\.01 false alarms"):
        Calibrated(**entry, num_held_out=98)


def test_what_is_not_known_of_clusters_is_not_written() -> None:
    assert set(json.loads(share(1, 4).model_dump_json())) == {"count", "total", "share", "ci95"}
    assert json.loads(clustered_share([True, False, True], "aab").model_dump_json())["clusters"] == 2
    assert json.loads(Mean(mean=1.0, ci95=None).model_dump_json()) == {"mean": 1.0, "ci95": None}


def test_warnings_are_codes_and_are_said_in_one_place() -> None:
    warning = NotMeasured(measures=("precision_train", "kid_held_out"), num_needed=4, num_images=2)
    assert json.loads(warning.model_dump_json())["code"] == "not_measured"
    told = "Precision to training images and KID to held-out images: not measured, since 4 images are needed"
    assert warning.sentence.startswith(told)
    few = FewImages(images="sample", num_images=1024, num_usual=2048)
    assert few.sentence.startswith("the sample set has 1,024 images, fewer than 2,048: ")
    with pytest.raises(ValidationError, match="pattern"):
        NotMeasured(measures=("kid_of_all",), num_needed=4, num_images=2)


def test_a_folder_made_to_order_is_an_audit(tmp_path: Path) -> None:
    """Of which other tests make their pages."""
    assert isinstance(read_record(write_audit(tmp_path / "a").path / "audit.json"), AuditRecord)
