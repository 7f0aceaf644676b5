"""Alignment and the CLIP score: by pencil, in an audit, and refused where there are no prompts."""

from typing import Any

import pytest
import torch

from iet_agc.auditing.compute import audit
from iet_agc.data.image_set import ImageSet
from iet_agc.metrics.alignment import alignment, group, ranks
from iet_agc.metrics.clip import clip_score, load_clip, other_prompts
from iet_agc.metrics.intervals import wilson
from tests.audits_on_disk import audit_on_disk
from tests.miniature import save_clip
from tests.similar_images import FRESH, HELD_OUT, NETWORK, TRAIN

NAMES = [f"image {number}" for number in range(len(TRAIN))]


def told(images, captions, name="set"):
    return ImageSet(images, name, captions=tuple((one,) if isinstance(one, str) else tuple(one) for one in captions))


def aligned(samples, prompts, train=None, held_out=None):
    real = None if held_out is None else told(held_out, [f"real {n}" for n in range(len(held_out))])
    result = audit(train or told(TRAIN, NAMES), told(samples, prompts), real, extractors=[NETWORK])
    return result.numbers.feature_spaces["net"].alignment


# Alignment ------------------------------------------------------------------------------------------------


def test_ranks_by_pencil():
    """Cosines to images a, b, c, c: 1, 0.8, 0 and 0.6; of prompt b two halves tie in the last row."""
    references = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [0.6, 0.8]])
    captions = group([*map(frozenset, ({"a", "any"}, {"b", "any"}, {"c"}, {"c"}))])
    assert captions.count == 3
    samples = torch.tensor([[1.0, 0.0]] * 4 + [[0.0, 0.0]])
    prompts = ["a", "b", "c", "any", "b"]
    found = ranks(samples, references, prompts, captions)
    assert found.tolist() == [1, 2, 3, 1, 2]
    entry = alignment(found, prompts, captions)
    assert (entry.num_samples, entry.num_captions) == (5, 3)
    assert entry.percentile.mean == pytest.approx((1 + 0.5 + 0 + 1 + 0.5) / 5)
    assert entry.reciprocal_rank.mean == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 + 1 / 2) / 5)
    assert (entry.top1.count, entry.top10.count) == (2, 5)
    assert entry.chance.percentile == pytest.approx((4 * 1 / 2 + 2 / 3) / 5)
    assert entry.chance.top1 == pytest.approx((4 * 1 / 3 + 2 / 3) / 5)
    assert entry.chance.top10 == 1


def test_samples_of_their_prompts_are_aligned_and_others_are_not():
    copies = aligned(TRAIN[:40], NAMES[:40]).train
    assert copies.percentile.mean == copies.reciprocal_rank.mean == copies.top1.share == 1
    assert dict(copies.chance) == {"percentile": 0.5, "top1": pytest.approx(1 / 120), "top10": pytest.approx(1 / 12)}
    fresh = aligned(FRESH, NAMES[:60]).train
    assert fresh.percentile.ci95 is not None
    low, high = fresh.percentile.ci95
    assert low < 0.5 < high < 0.65
    swapped = aligned(TRAIN[:40], [*NAMES[1:40], NAMES[0]]).train
    assert swapped.top1.count == 0


def test_prompts_of_held_out_images_and_of_none():
    entry = aligned(
        torch.cat([HELD_OUT[:5], FRESH[:3]]), [f"real {n}" for n in range(5)] + ["a", "b", "c"], None, HELD_OUT
    )
    assert entry.train is None
    assert (entry.held_out.num_samples, entry.held_out.top1.share) == (5, 1)
    assert aligned(FRESH, ["of no image"] * 60) is None
    result = audit(ImageSet(TRAIN, "t"), told(FRESH, NAMES[:60]), extractors=[NETWORK])
    assert result.numbers.feature_spaces["net"].alignment is None


def test_shares_take_the_prompts_of_samples_for_clusters():
    """Two of ten prompts, each drawn six times, are copied: as sure as 2 of 10, with t(0.975, 9)."""
    prompts = [NAMES[number % 10] for number in range(60)]
    images = torch.stack([TRAIN[number] if number % 10 < 2 else FRESH[number] for number in range(60)])
    result = audit(
        told(TRAIN, NAMES), told(images, prompts), told(HELD_OUT, ["real"] * len(HELD_OUT)), extractors=[NETWORK]
    )
    numbers, space = result.numbers, result.numbers.feature_spaces["net"]
    entries = [each.mq["0.15"] for each in (numbers, space)] + [each.calibrated for each in (numbers, space)]
    for each in (numbers, space):
        entries += [getattr(each.statistics, key) for key in ("d1_d2", "auth_pct", "near")]
    entries += [space.similarity.calibrated, space.similarity.samples.above]
    entries += [getattr(space.alignment.train, key) for key in ("top1", "top10")]
    assert {entry.clusters for entry in entries} == {10}
    assert entries[0].count == 12
    assert entries[0].ci95 == pytest.approx(wilson(0.2, 10, 9))
    assert space.similarity.samples.mean.clusters == 10
    assert numbers.held_out.mq["0.15"].clusters is None
    assert "prompts as clusters" in numbers.conventions.interval


def test_samples_of_different_prompts_are_independent_draws():
    sets = [told(TRAIN[:60], NAMES[:60]), ImageSet(TRAIN[:60], "set")]
    found = [audit(told(TRAIN, NAMES), each, ImageSet(HELD_OUT, "real"), extractors=[NETWORK]).numbers for each in sets]
    for key in ("mq", "calibrated", "statistics", "conventions"):
        assert getattr(found[0], key) == getattr(found[1], key)
    assert found[0].conventions.interval == "Wilson, 95 %"


def test_an_image_that_stands_twice_has_the_captions_of_both_places():
    train = told(torch.cat([TRAIN, TRAIN[3:4]]), [*NAMES, "the same once more"])
    entry = aligned(TRAIN[[3, 3]], ["the same once more", NAMES[3]], train).train
    assert (entry.num_samples, entry.top1.count, entry.num_captions) == (2, 2, 120)


def test_an_audit_says_how_many_images_its_prompts_are_about():
    """An image by any of its captions, and at both of its places; a caption of three images is about three."""
    captions = [[name, "one of three"] if number < 3 else [name] for number, name in enumerate(NAMES)]
    train = told(torch.cat([TRAIN, TRAIN[9:10]]), [*captions, ["the tenth once more"]])
    for prompts, images in {
        (NAMES[5],): 1,
        (NAMES[5], NAMES[6]): 2,
        ("one of three",): 3,
        ("one of three", NAMES[0], NAMES[5]): 4,
        ("the tenth once more", NAMES[9]): 1,
        ("of no image", NAMES[5]): 1,
        ("of no image",): 0,
        (*NAMES,): 120,
    }.items():
        found = audit(train, told(TRAIN, (prompts * 120)[:120]), extractors=["pixels"]).numbers.prompts
        assert (found.num_prompts, found.num_train_images) == (len(prompts), images)
        assert found.share == images / 120
    assert audit(ImageSet(TRAIN, "t"), told(FRESH, NAMES[:60]), extractors=["pixels"]).numbers.prompts is None
    assert audit(train, ImageSet(FRESH, "s"), extractors=["pixels"]).numbers.prompts is None


# CLIP score -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return save_clip(tmp_path_factory.mktemp("clip") / "it")


def test_scores_by_pencil():
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    texts = torch.tensor([[0.6, 0.8], [-1.0, 0.0]])
    own = torch.tensor([0, 1])
    assert clip_score(images, texts).mean == pytest.approx((60 + 0) / 2)
    assert clip_score(images, texts, "ab") == clip_score(images, texts)
    assert clip_score(images, texts, "aa").ci95 is None
    assert other_prompts(images, texts, own).mean == pytest.approx((0 + 80) / 2)
    assert other_prompts(images, texts[:1], torch.tensor([0, 0])) is None


def test_embeddings_are_those_of_transformers_and_do_not_depend_on_company(clip):
    from transformers import CLIPModel, CLIPProcessor

    network, images = load_clip(str(clip)), torch.cat([TRAIN[:20]] * 3, dim=1)
    texts = ["a red dog", "a blue house with a hat", "a " * 40]
    model = CLIPModel.from_pretrained(clip).eval()
    processor: Any = CLIPProcessor.from_pretrained(clip)
    with torch.inference_mode():
        given = processor(
            text=texts, images=[*images], return_tensors="pt", padding=True, truncation=True, max_length=16
        )
        expected = model(**given)
    rows = network.embed_texts(texts)
    assert torch.allclose(rows, expected.text_embeds, atol=1e-5)
    assert torch.allclose(network.embed_images(images), expected.image_embeds, atol=1e-5)
    assert torch.equal(network.embed_texts(texts[1:2]), rows[1:2])
    assert torch.equal(network.embed_images(images[17:]), network.embed_images(images)[17:])
    assert network.is_cut_off(texts) == [False, False, True]


def test_an_audit_gives_the_clip_score(clip):
    samples = told(FRESH, ["a red dog", "a blue cat", "a " * 40] * 20)
    done = []
    from iet_agc.auditing.work import Work

    result = audit(ImageSet(TRAIN, "t"), samples, extractors=["pixels"], clip=str(clip), work=Work(on_done=done.append))
    entry = result.numbers.clip
    assert sum(done) == pytest.approx(1)
    assert (entry.model, entry.num_prompts, entry.num_cut_off) == (str(clip), 3, 20)
    network = load_clip(str(clip))
    cosines = network.embed_images(FRESH) @ network.embed_texts(["a red dog", "a blue cat", "a " * 40]).T
    own = cosines.gather(1, (torch.arange(60) % 3)[:, None]).clamp(min=0)
    assert entry.score.mean == pytest.approx(100 * float(own.mean()), abs=1e-4)
    assert entry.score.ci95[0] <= entry.score.mean <= entry.score.ci95[1]


def test_samples_without_prompts_have_no_clip_score(clip, tmp_path, monkeypatch):
    import numpy as np

    monkeypatch.chdir(tmp_path)
    np.save("a.npy", TRAIN.numpy())
    with pytest.raises(ValueError, match=r"^the CLIP score compares samples with their prompts, and a.npy has none: "):
        audit_on_disk("a.npy", "a.npy", None, tmp_path / "out", clip=str(clip), on_done=lambda share: None)
    assert not (tmp_path / "out").exists()


def test_what_is_no_clip_model_is_refused(clip, tmp_path):
    import shutil

    with pytest.raises(ValueError, match=r"^there is no folder ./nowhere: give that of a CLIP model, or a hub id$"):
        load_clip("./nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty is no usable CLIP model, .*: give a folder with a model in safe"):
        load_clip(str(tmp_path / "empty"))
    for name in ("pickled", "cut"):
        shutil.copytree(clip, tmp_path / name)
    weights = tmp_path / "pickled" / "model.safetensors"
    weights.rename(weights.with_name("pytorch_model.bin"))
    with pytest.raises(ValueError, match="pickled is no usable CLIP model"):
        load_clip(str(tmp_path / "pickled"))
    from safetensors.torch import load_file, save_file

    weights = tmp_path / "cut" / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(weights).items() if "text_projection" not in name}
    save_file(kept, weights, {"format": "pt"})
    with pytest.raises(ValueError, match=r"cut is no usable CLIP model \(it lacks text_projection.weight\)"):
        load_clip(str(tmp_path / "cut"))
