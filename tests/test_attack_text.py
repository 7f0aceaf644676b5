"""Attacks on text-to-image: models that hold images by their captions, and what is written and refused."""

import csv
import json
import re
from collections.abc import Generator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest
import torch
from torch import nn

pytest.importorskip("transformers")

from iet_agc.auditing import attack, attack_ways, attacked_text, text_ways
from iet_agc.auditing.attack import attack_model, attack_page, read_attack_record, read_attacks
from iet_agc.auditing.attacked_text import open_text
from iet_agc.auditing.drawings import read_drawings
from iet_agc.auditing.pixel_models import some_places
from iet_agc.auditing.recount_attack import recount_attack
from iet_agc.config.settings import Settings, validate
from iet_agc.data.image_set import ImageSet
from iet_agc.diffusion.process import to_float
from iet_agc.diffusion.redrawing import REDRAW_STEPS
from iet_agc.metrics.attacks import Way
from iet_agc.runtime.errors import UserError
from iet_agc.runtime.seeds import generator
from iet_agc.text_to_image.embedding_search import fit_embeddings
from iet_agc.text_to_image.family import TextPipeline
from iet_agc.text_to_image.pipeline import load_text_pipeline
from iet_agc.text_to_image.redrawing import redraw_captioned
from tests.attack_folders import stopped_after, untimed
from tests.commands import call
from tests.faulty import contents
from tests.miniature import WORDS, captioned, save_miniature
from tests.miniature_families import save_flux
from tests.tiny_runs import CPU

NUM_TRAIN, NUM_HELD_OUT = 60, 240

#: How embeddings are fitted, and how quickly where nothing is asked of them.
FIT = text_ways._Fit  # pyright: ignore[reportPrivateUsage]


@pytest.fixture(scope="module", autouse=True)
def quickly() -> Generator[None]:
    """Embeddings are hardly fitted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_ways, "_Fit", partial(FIT, steps=1, batch=2))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_miniature(tmp_path_factory.mktemp("pipelines") / "epsilon", prediction="v_prediction")


@pytest.fixture(scope="module")
def latents() -> torch.Tensor:
    return 2 * torch.randn(NUM_TRAIN + NUM_HELD_OUT, 4, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def images(folder: Path, latents: torch.Tensor) -> ImageSet:
    """What the pipeline decodes of these latents, each with a caption of its own."""
    captions = tuple((f"a {WORDS[1 + n % 3]} {WORDS[4 + n % 4]} {n}",) for n in range(len(latents)))
    with torch.no_grad():
        pixels = load_text_pipeline(folder).decode(latents * 0.18215)
    return ImageSet(pixels, "decoded", captions=captions)


class Told(nn.Module):
    """A denoiser that draws what belongs to the text that it is told, and of other texts always the same."""

    def __init__(self, unet: Any, scheduler: Any, embeds: torch.Tensor, latents: torch.Tensor, width: float) -> None:
        super().__init__()
        self.config, self.scheduler, self.device = unet.config, scheduler, torch.device("cpu")
        self.embeds, self.latents, self.width = embeds.flatten(1), latents, width

    def forward(self, noisy: torch.Tensor, timesteps: torch.Tensor, encoder_hidden_states: torch.Tensor) -> Any:
        distances = torch.cdist(encoder_hidden_states.flatten(1), self.embeds)
        shares = torch.exp(-distances.square() / self.width)[..., None, None, None]  # 1 where it is told the caption
        clean = (shares * self.latents).sum(1)
        abar = self.scheduler.alphas_cumprod[timesteps.long()].view(-1, 1, 1, 1)
        noise = (noisy - abar.sqrt() * clean) / (1 - abar).sqrt()
        return SimpleNamespace(sample=abar.sqrt() * noise - (1 - abar).sqrt() * clean)


@pytest.fixture
def attacked(folder: Path, images: ImageSet, latents: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Attacks a pipeline that holds some of the images, and whose VAE knows of what latents it decodes each."""
    known = {image.numpy().tobytes(): own for image, own in zip(images.images, latents, strict=True)}

    def moments(self: object, pixels: torch.Tensor) -> torch.Tensor:
        means = torch.stack([known[image.numpy().tobytes()] for image in pixels])
        return torch.stack([means, torch.zeros_like(means)], dim=1)

    monkeypatch.setattr(TextPipeline, "moments", moments)

    def attack(held: list[int], out: Path, shift: float = 0.0, **how: Any) -> Any:
        pipeline = load_text_pipeline(folder)
        embeds = pipeline.embed(pipeline.tokens([images.captions[n][0] for n in held])).embeds  # pyright: ignore[reportOptionalSubscript]
        unet = Told(
            pipeline.denoiser, pipeline.scheduler, embeds + shift, latents[held] * 0.18215, 2.5 if shift else 1.0
        )
        monkeypatch.setattr(attacked_text, "load_text_pipeline", lambda folder: pipeline.with_trained(unet))
        how = {"budget": 40, "steps": 5} | how
        return attack_model(folder, out, "own", "others", given=parts(images), **how)

    return attack


def parts(images: ImageSet) -> Any:
    own, real = torch.arange(NUM_TRAIN), torch.arange(NUM_TRAIN, len(images))
    return {"train": images.take(own), "held-out": images.take(real)}


def test_captions_that_hold_images_are_ranked_first(attacked: Any, tmp_path: Path) -> None:
    held = [3, 14, 15, 35, 53, 58]
    found = attacked(held, tmp_path / "a")
    by_way = {each["way"]: each for each in found["attacks"]}
    assert by_way["ranking"]["train"]["count"] == 6
    assert 1 < by_way["sampling"]["train"]["count"] < 6  # 40 of 60 captions
    assert by_way["redrawing"]["train"]["count"] >= 6
    for each in found["attacks"]:
        assert each["held_out"]["share"] <= 0.02
    # 40 samples of 10 evaluations; 60 captions are ranked for 2 each, the rest is 7 captions with 4 seeds
    ranking = read_attacks(tmp_path / "a").attacks[2]
    assert (ranking.evaluations, ranking.drawings) == (2 * 60 + 28 * 10, 28)
    assert ranking.sampling_by_then == by_way["sampling"]["train"]["count"]
    assert [*ranking.found_after] == [120 + 10 * (place + 1) for place in range(6)]  # the most suspicious first
    about = json.loads((tmp_path / "a" / "attack.json").read_text(encoding="utf-8"))["text_to_image"]
    assert about["ranking"] == {
        "ranked": 60, "sampled": 7, "held_out_ranked": 240, "held_out_sampled": 28, "seeds": 4,
    }  # fmt: skip
    page = (tmp_path / "a" / "attack.html").read_text(encoding="utf-8")
    assert page.count('alt="drawn of training image') >= 12
    assert "The 7 that move it most" in page
    with (tmp_path / "a" / "images.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    recovered = {int(row["image"]) for row in rows if row["ranking_recovered"] == "True" and row["set"] == "train"}
    assert recovered == {*held}


def test_what_a_pipeline_never_saw_is_not_recovered(attacked: Any, tmp_path: Path) -> None:
    """It holds held-out images in place of training images: the control has them."""
    held = [NUM_TRAIN + n for n in (1, 50, 100, 150)]
    for each in attacked(held, tmp_path / "a")["attacks"]:
        assert each["beyond_chance"]["ci95"][0] <= 0


def test_a_redrawn_image_is_the_literal_one_whatever_its_company(folder: Path) -> None:
    pipeline, some = load_text_pipeline(folder), captioned(40)
    texts = [each[0] for each in some.captions or ()]
    noise = torch.randn(40, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    found = redraw_captioned(pipeline, some.images, texts, noise)
    assert torch.equal(found[3:5], redraw_captioned(pipeline, some.images[3:5], texts[3:5], noise[3:5]))
    abar, unet = pipeline.scheduler.alphas_cumprod, pipeline.denoiser
    with torch.no_grad():
        encoded: Any = pipeline.vae.encode(to_float(some.images))
        z = encoded.latent_dist.mean * pipeline.vae.config.scaling_factor  # pyright: ignore[reportAttributeAccessIssue]
        told = pipeline.text_encoder(pipeline.tokens(texts))[0]
        steps = 1000 // stride if (stride := stride_to_half(abar)) else 0
        x = abar[3 * stride + 1].sqrt() * z + (1 - abar[3 * stride + 1]).sqrt() * noise
        for at in (3 * stride + 1, 2 * stride + 1, stride + 1, 1):
            v = unet(x, torch.full((40,), at), encoder_hidden_states=told).sample
            clean, e = abar[at].sqrt() * x - (1 - abar[at]).sqrt() * v, abar[at].sqrt() * v + (1 - abar[at]).sqrt() * x
            before = abar[at - stride] if at > stride else abar[0]
            x = before.sqrt() * clean + (1 - before).sqrt() * e
        assert steps >= REDRAW_STEPS
        expected = pipeline.decode(x)
    assert (found.int() - expected.int()).abs().max() <= 1


def stride_to_half(abar: torch.Tensor) -> int:
    """Of DDIM whose last four steps begin nearest to half of the variance."""
    strides = {1000 // steps for steps in range(4, 100)}
    return min(strides, key=lambda stride: abs(float(abar[min(999, 3 * stride + 1)]) - 0.5))


# Of a pipeline of random weights ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def random_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_miniature(tmp_path_factory.mktemp("pipelines") / "random")


#: Two parts of plain samples, at least one of everything else.
IN_PARTS: Any = {"budget": 40, "steps": 1}


@pytest.fixture(scope="module")
def whole(random_folder: Path, images: ImageSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An attack that nothing stopped, in parts of other sizes than the killed ones."""
    out = tmp_path_factory.mktemp("attack") / "whole"
    attack_model(random_folder, out, "own", "others", given=parts(images), **IN_PARTS)
    return out


class Counted:
    """A progress bar that keeps what it is told."""

    def __init__(self, what: str, total: int) -> None:
        self.what, self.total, self.told = what, total, list[float]()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def update(self, count: float) -> None:
        self.told.append(count)


@pytest.mark.parametrize("kept", [13])
def test_killed_and_given_again_it_is_the_same(
    random_folder: Path, images: ImageSet, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    how = (random_folder, tmp_path / "killed", "own", "others")
    monkeypatch.setattr(attack_ways, "_PART", 1)
    with stopped_after(kept):
        attack_model(*how, given=parts(images), **IN_PARTS)
    bars: list[Counted] = []
    monkeypatch.setattr(attack, "progress_bar", lambda *given, **named: bars.append(Counted(*given)) or bars[-1])
    attack_model(*how, given=parts(images), **IN_PARTS)
    assert untimed(tmp_path / "killed") == untimed(whole)
    assert sum(bars[0].told) == pytest.approx(bars[0].total)
    assert bars[0].total > IN_PARTS["budget"] * 2  # evaluations, not images


def test_what_is_found_is_written_once(random_folder: Path, images: ImageSet, whole: Path) -> None:
    before = contents(whole)
    attack_model(random_folder, whole, "own", "others", given=parts(images), **IN_PARTS)
    assert contents(whole) == before


def test_every_way_is_counted_again_and_its_page_made_again(whole: Path) -> None:
    found, record = recount_attack(whole), read_attack_record(whole)
    ways: tuple[Way, ...] = tuple(each.way for each in record.found.attacks)
    assert [*ways] == ["sampling", "redrawing", "ranking", "embeddings"]
    assert found.differences == []
    assert attack_page(record, read_drawings(whole, ways)) == (whole / "attack.html").read_text(encoding="utf-8")


def test_another_family_is_attacked_by_what_it_allows(
    images: ImageSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline = save_flux(tmp_path / "flux")
    found: Any = attack_model(
        pipeline, tmp_path / "a", "own", "others", given=parts(images), budget=20, steps=1, device="cpu"
    )
    assert [each["way"] for each in found["attacks"]] == ["sampling", "redrawing"]
    assert "is for Stable Diffusion 1 or 2, not for Flux: both are left out" in capsys.readouterr().err
    page = (tmp_path / "a" / "attack.html").read_text(encoding="utf-8")
    assert "both are for models with one text encoder" in page


def test_samples_are_drawn_as_the_run_says(random_folder: Path) -> None:
    def per_sample(**sample: Any) -> int:
        return open_text(random_folder, validate({"sample": sample}), 5, CPU).per_sample

    assert per_sample(guidance=1.0) == 5
    assert per_sample(guidance=2.0) == 10  # with and without the text
    assert per_sample(guidance=2.0, scheduler="pndm") == 12  # which takes one step more


def test_prompts_are_the_captions_that_were_trained_on_each_once(random_folder: Path) -> None:
    some = captioned(12)
    both = open_text(random_folder, Settings(), 5, CPU).prompts_of(some)
    assert sorted(both) == sorted({text for texts in some.captions or () for text in texts})
    first = open_text(random_folder, validate({"text": {"captions": "first"}}), 5, CPU).prompts_of(some)
    assert sorted(first) == sorted({texts[0] for texts in some.captions or ()})


@pytest.mark.parametrize(
    ("kind", "changes", "told"),
    [
        ("train", {"captions": None}, "the model draws by captions, and the training images have none: give some"),
        ("held-out", {"captions": None}, "the model draws by captions, and the held-out images have none: give some"),
        ("train", {"captions": (("a" * 20,),) * NUM_TRAIN}, "has 22 tokens, the text encoder takes 16: shorten it"),
        ("both", {"images": 24}, "training images are 3 x 24 x 24, the model draws 3 x 16 x 16: sizes must agree"),
    ],
)
def test_images_that_do_not_fit_are_refused(
    random_folder: Path, images: ImageSet, tmp_path: Path, kind: str, changes: Any, told: str
) -> None:
    given = parts(images)
    if kind == "both":
        given = {
            name: replace(each, images=each.images.repeat(1, 1, 2, 2)[..., :24, :24]) for name, each in given.items()
        }
    else:
        given[kind] = replace(given[kind], **changes)
    with pytest.raises(UserError, match=re.escape(told)):
        attack_model(random_folder, tmp_path / "m", "own", "others", given=given)
    assert not (tmp_path / "m").exists()


def test_a_pipeline_does_not_say_what_it_was_trained_on(
    random_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, line = call(capsys, "attack", random_folder, "--out", tmp_path / "m")
    assert (status, out, line.count("\n")) == (2, "", 1)
    assert "does not say what it was trained on: give the training images" in line


# Embeddings -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_fitted_embedding_is_the_literal_one_whatever_its_company(tmp_path: Path, prediction: str) -> None:
    pipeline, some = load_text_pipeline(save_miniature(tmp_path / "p", prediction=prediction)), captioned(10)
    texts = [each[0] for each in some.captions or ()]
    found = fit_embeddings(pipeline, some.images, texts, steps=3, batch=4, rate=0.1).embeds
    alone = fit_embeddings(pipeline, some.images[9:], texts[9:], steps=3, batch=4, rate=0.1).embeds
    assert torch.equal(found[9:], alone)
    with torch.no_grad():
        encoded: Any = pipeline.vae.encode(to_float(some.images[9:]))
        z = encoded.latent_dist.mean * pipeline.vae.config.scaling_factor  # pyright: ignore[reportAttributeAccessIssue]
        embedding = pipeline.text_encoder(pipeline.tokens(texts[9:]))[0]
    abar, (first, second) = pipeline.scheduler.alphas_cumprod, torch.zeros(2, *embedding.shape)
    for step in range(3):
        rng, gradient = generator("embedding", step), torch.zeros_like(embedding)
        times, noise = torch.randint(1000, (4,), generator=rng), torch.randn(4, 4, 8, 8, generator=rng)
        for t, e in zip(times, noise, strict=True):
            free = embedding.clone().requires_grad_()
            seen = abar[t].sqrt() * z + (1 - abar[t]).sqrt() * e
            predicted = pipeline.denoiser(seen, t[None], encoder_hidden_states=free).sample
            wanted = e if prediction == "epsilon" else abar[t].sqrt() * e - (1 - abar[t]).sqrt() * z
            gradient = gradient + torch.autograd.grad((predicted - wanted).square().mean() / 4, free)[0]
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient.square()
        corrected = first / (1 - 0.9 ** (step + 1)), second / (1 - 0.999 ** (step + 1))
        embedding = embedding - 0.1 * corrected[0] / (corrected[1].sqrt() + 1e-8)
    assert torch.allclose(alone, embedding, atol=0.02)  # Adam divides by gradients that may be near 0
    assert (alone - embedding).abs().median() < 1e-4


def test_what_captions_do_not_bring_back_embeddings_do(
    attacked: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The embedding that an image is drawn by lies beside that of its caption."""
    monkeypatch.setattr(text_ways, "_Fit", partial(FIT, steps=12, batch=4))
    found = attacked([*range(20)], tmp_path / "a", budget=115, shift=0.3)
    by_way = {each["way"]: each for each in found["attacks"]}
    assert by_way["sampling"]["train"]["count"] <= 2
    fitted = by_way["embeddings"]
    held = sum(1 for place in some_places(NUM_TRAIN, 7, "attack", "train").tolist() if place < 20)
    assert held <= fitted["train"]["count"] <= held + 1
    assert fitted["held_out"]["share"] <= 0.02
    assert fitted["evaluations"] == fitted["train"]["total"] * (12 * 4 * 3 + 2 * 10)
