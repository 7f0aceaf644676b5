"""Which point of a curve is recommended, and how sure that is; of curves made by hand."""

import pytest
from pydantic import ValidationError

from iet_agc.metrics.curve import Agreement, Losses, Point, recommend
from iet_agc.metrics.intervals import least_calibrated_share
from tests.watch_points import point, points


def test_above_chance_is_what_a_gate_fails_at_the_rate_of_false_alarms() -> None:
    for count in (0, 2, 5, 8, 12, 40):
        found = point(100, count)
        least = least_calibrated_share(count, 200, 0.01, 497, 0.025)
        assert found.least == least
        assert found.above_chance == (least > 0.01) == (count >= found.fails_from)
    assert point(100, 2).above_chance is False
    assert point(100, 40).above_chance is True


def test_copying_that_begins_late() -> None:
    found = recommend(points(0, 1, 0, 2, 30, 50))
    assert (found.step, found.images_seen, found.copying, found.confidence) == (400, 25_600, "later", "high")
    assert (found.points, found.above_before, found.above_after, found.first_above) == (6, 0, 2, 500)
    assert found.copied is not None
    assert found.copied.count == 2
    assert "step 400 (1.0% copied, 95% interval 0.3 to 3.6%), confidence high" in found.sentence
    assert "above chance at both points after it" in found.sentence


def test_one_point_after_it_is_less_sure() -> None:
    found = recommend(points(0, 0, 30))
    assert (found.step, found.copying, found.confidence, found.above_after) == (200, "later", "fair", 1)
    assert "the one point after it" in found.sentence


def test_copying_from_the_start() -> None:
    found = recommend(points(40, 50, 60))
    assert (found.step, found.images_seen, found.copied) == (None, None, None)
    assert (found.copying, found.above_after, found.first_above) == ("from the start", 3, 100)
    assert found.sentence.startswith("No point is recommended: the copied share is above chance at each of 3 points")
    assert "Watch earlier" in found.sentence


def test_copying_that_is_never_seen() -> None:
    found = recommend(points(0, 1, 2))
    assert (found.step, found.copying, found.confidence, found.first_above) == (300, "never", "fair", None)
    fails_from = point(100, 0).fails_from
    assert found.detectable == fails_from / 200
    assert f"below {100 * fails_from / 200:.1f}% cannot be told from chance" in found.sentence


def test_noise_in_between_lowers_the_confidence() -> None:
    found = recommend(points(0, 30, 1, 40, 50))
    assert (found.step, found.copying, found.confidence) == (300, "later", "low")
    assert (found.above_before, found.above_after, found.first_above) == (1, 2, 200)
    assert "above chance at one earlier point, first at step 200" in found.sentence


def test_copying_that_goes_away() -> None:
    found = recommend(points(30, 40, 0))
    assert (found.step, found.copying, found.confidence, found.above_before) == (300, "before", "low", 2)
    assert "2 earlier points, first at step 100, and not at the last" in found.sentence


@pytest.mark.parametrize(("copied", "step", "copying"), [(0, 100, "never"), (50, None, "from the start")])
def test_one_point(copied: int, step: int | None, copying: str) -> None:
    found = recommend(points(copied))
    assert (found.step, found.copying, found.confidence, found.points) == (step, copying, "low", 1)
    assert "at the only point" in found.sentence


def test_no_points_recommend_nothing() -> None:
    with pytest.raises(ValueError, match="without points"):
        recommend([])


def test_a_point_is_read_back_as_it_was_written() -> None:
    losses = Losses(train=0.1, held_out=0.3, gap=0.2, train_bands=(0.1, None), held_out_bands=(0.3, None), num_images=4)
    made = point(100, 3, losses=losses)
    assert Point.model_validate_json(made.model_dump_json()) == made
    assert losses.gap_bands == [pytest.approx(0.2), None]


def test_a_point_whose_numbers_disagree_is_refused() -> None:
    content = point(100, 50).model_dump() | {"above_chance": False}
    with pytest.raises(ValidationError, match="above_chance is False"):
        Point.model_validate(content)
    with pytest.raises(ValidationError):
        Agreement(value=0.5, same=1.0, different=2.0, members=1, seeds=4)


def test_what_a_program_reads() -> None:
    content = recommend(points(0, 30, 40)).model_dump(mode="json")
    assert content["step"] == 100
    assert content["sentence"].startswith("Recommended: step 100")
