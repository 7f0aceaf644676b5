"""A guarded sample set: the first seeds that pass, whoever drew them, and no copies by the audit."""

import json

import pytest
import torch

from iet_agc.auditing.compute import audit
from iet_agc.auditing.guard import make_guard
from iet_agc.data.image_set import ImageSet
from iet_agc.sampling import sample_set
from iet_agc.sampling.sample_set import load_samples
from tests.drawing import draw_samples
from tests.processes import in_processes


def noise(count, seed):
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, 1, 8, 8), generator=rng, dtype=torch.uint8)


TRAIN, HELD_OUT = ImageSet(noise(120, 1), "train"), ImageSet(noise(199, 2), "real")


def copies_every_third(model, scheduler, seeds, shape, steps, device, on_images, *rest):
    """Seeds 0, 3, 6 .. hand back a training image, every sixth of them mirrored."""
    images = torch.cat([noise(1, 1000 + seed) for seed in seeds])
    for row, seed in enumerate(seeds):
        if seed % 3 == 0:
            image = TRAIN.images[seed % 120]
            images[row] = image.flip(-1) if seed % 6 == 0 else image
    on_images(len(seeds))
    return images


@pytest.fixture
def copying(monkeypatch, small_parts):
    monkeypatch.setattr(sample_set, "sample", copies_every_third)


def test_the_guard_agrees_with_the_audit():
    drawn = ImageSet(copies_every_third(None, None, range(60), None, None, None, lambda count: None), "drawn")
    for flips, copied in ((False, 10), (True, 20)):
        guard = make_guard(TRAIN, HELD_OUT, flips)
        result = audit(TRAIN, drawn, HELD_OUT, flips=flips)
        assert guard.cut == result.numbers.cut
        assert torch.equal(guard.passes(drawn.images), result.ratios >= result.numbers.cut)
        turned_down = (~guard.passes(drawn.images)).nonzero()[:, 0]
        assert len(turned_down) >= copied
        assert {seed for seed in range(60) if seed % 3 == 0 and (flips or seed % 6)} <= {*turned_down.tolist()}


def test_a_guard_by_held_out_images_that_cannot_tell_is_refused():
    altered = (TRAIN.images.float() * 0.9 + 12).round().to(torch.uint8)
    with pytest.raises(ValueError, match=r"a guard by altered would let copies through: .* give held-out images"):
        make_guard(TRAIN, ImageSet(torch.cat([altered, HELD_OUT.images[:100]]), "altered"))


def test_a_guarded_set_holds_the_first_seeds_that_pass(pipeline, tmp_path, copying):
    guard = make_guard(TRAIN, HELD_OUT, flips=True)
    guarded, seeds = load_samples(draw_samples(pipeline, range(3, 33), tmp_path / "a", steps=3, guard=guard))
    plain = copies_every_third(None, None, range(3, 80), None, None, None, lambda count: None)
    expected = [3 + place for place in guard.passes(plain).nonzero()[:, 0].tolist()][:30]
    assert seeds == expected
    assert torch.equal(guarded.images, plain[[seed - 3 for seed in expected]])
    assert audit(TRAIN, guarded, HELD_OUT, flips=True).numbers.calibrated.count == 0
    about = json.loads((tmp_path / "a" / "samples.json").read_text())
    assert about["turned_down"] == [seed for seed in range(3, expected[-1]) if seed not in expected]
    assert about["guard"]["cut"] == guard.cut
    assert about["guard"]["sha256"]["train"] == TRAIN.fingerprint


def test_a_guarded_set_of_files_keeps_its_seeds(pipeline, tmp_path, copying):
    guard = make_guard(TRAIN, HELD_OUT)
    array = load_samples(draw_samples(pipeline, range(12), tmp_path / "a", steps=3, guard=guard))
    files = load_samples(draw_samples(pipeline, range(12), tmp_path / "b", steps=3, guard=guard, file_format="png"))
    assert array[1] == files[1] != list(range(12))
    assert torch.equal(array[0].images, files[0].images)


@pytest.mark.parametrize("count", [2, 3])
def test_many_processes_guard_as_one(pipeline, tmp_path, count, copying):
    guard = make_guard(TRAIN, HELD_OUT)
    in_processes(count, lambda: draw_samples(pipeline, range(10), tmp_path / "many", steps=3, guard=guard))
    many, seeds = load_samples(tmp_path / "many")
    one, expected = load_samples(draw_samples(pipeline, range(10), tmp_path / "one", steps=3, guard=guard))
    assert seeds == expected
    assert torch.equal(many.images, one.images)


def test_a_killed_guarded_draw_goes_on(pipeline, tmp_path, monkeypatch, copying):
    guard, calls = make_guard(TRAIN, HELD_OUT), []

    def dies_at_the_seventh(*arguments):
        calls.append(1)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return copies_every_third(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(sample_set, "sample", dies_at_the_seventh)
        with pytest.raises(KeyboardInterrupt):
            draw_samples(pipeline, range(10), tmp_path / "a", steps=3, guard=guard)
    resumed = load_samples(draw_samples(pipeline, range(10), tmp_path / "a", steps=3, guard=guard))
    whole = load_samples(draw_samples(pipeline, range(10), tmp_path / "b", steps=3, guard=guard))
    assert resumed[1] == whole[1]
    assert torch.equal(resumed[0].images, whole[0].images)


def test_a_guarded_set_is_not_another_guards(pipeline, tmp_path, copying):
    draw_samples(pipeline, range(10), tmp_path / "a", steps=3, guard=make_guard(TRAIN, HELD_OUT))
    with pytest.raises(ValueError, match="holds another sample set"):
        draw_samples(pipeline, range(10), tmp_path / "a", steps=3)
    with pytest.raises(ValueError, match="holds another sample set"):
        draw_samples(pipeline, range(10), tmp_path / "a", steps=3, guard=make_guard(TRAIN, HELD_OUT, flips=True))


def test_a_model_that_only_copies_is_given_up_with(pipeline, tmp_path, monkeypatch, small_parts):
    monkeypatch.setattr(sample_set, "sample", lambda model, scheduler, seeds, *rest: TRAIN.images[list(seeds)])
    with pytest.raises(ArithmeticError, match="of 44 images only 0 pass the guard, and 4 are needed"):
        draw_samples(pipeline, range(4), tmp_path / "a", steps=3, guard=make_guard(TRAIN, HELD_OUT))


def test_bad_guards(pipeline, tmp_path):
    with pytest.raises(ValueError, match=r"needs 99 held-out images .* and few has fewer: give more"):
        make_guard(TRAIN, ImageSet(noise(98, 2), "few"))
    large = ImageSet(torch.randint(256, (120, 3, 8, 8), dtype=torch.uint8), "large")
    other = ImageSet(torch.randint(256, (120, 3, 8, 8), dtype=torch.uint8), "other")
    with pytest.raises(ValueError, match="the guard's training images are 3 x 8 x 8, the model draws 1 x 8 x 8"):
        draw_samples(pipeline, range(4), tmp_path / "a", steps=3, guard=make_guard(large, other))
    assert not (tmp_path / "a").exists()
