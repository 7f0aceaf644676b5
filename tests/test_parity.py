"""The presets of the paper hold the paper's settings, and its U-Net is the DDPM's, counted from first principles."""

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DModel  # pyright: ignore[reportPrivateImportUsage]

from iet_agc.config.fingerprint import differences
from iet_agc.config.overrides import override
from iet_agc.config.presets import load_preset, preset_names
from iet_agc.config.settings import Settings, validate
from iet_agc.data.datasets.captioned_folder import LAION_SHAPE
from iet_agc.data.image_set import ImageSet
from iet_agc.diffusion.process import NUM_TIMESTEPS, make_scheduler
from iet_agc.diffusion.unet import build_unet
from iet_agc.method.ema import ExponentialMovingAverage
from iet_agc.method.sharding import partition
from iet_agc.sampling.sample_set import load_samples, sample_run
from iet_agc.training.batches import draw_batch
from iet_agc.training.loop import train
from iet_agc.training.member import warmup

CIFAR = ("cifar10", "cifar100", "cifar100-conditional")
DATA = (*CIFAR, "afhq-dog")
METHODS = ("default", "iet", "agc", "iet-agc", "early-stop", "large-batch", "random-skip")
PRESETS = [f"{data}-{method}" for data in DATA for method in METHODS]
SIZES = dict.fromkeys(CIFAR, 50_000) | {"afhq-dog": 4_739}


def parts(name: str) -> tuple[str, str]:
    """(data, method) of a preset's name."""
    return max(
        ((d, name.removeprefix(f"{d}-")) for d in DATA if name.startswith(f"{d}-")), key=lambda part: len(part[0])
    )


def unet(settings: Settings) -> UNet2DModel:
    size = 64 if settings.data.name == "afhq-dog" else 32
    with torch.device("meta"):  # shapes only
        return build_unet(size, 3, **settings.model.architecture())


# -- the U-Net


def _linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def _conv(inputs: int, outputs: int, size: int = 3) -> int:
    return inputs * outputs * size**2 + outputs


def _norm(channels: int) -> int:
    return 2 * channels


def _residual(inputs: int, outputs: int, embedding: int) -> int:
    """Norm, convolution, embedding, norm, convolution, and a 1 x 1 convolution where the width changes."""
    through = 0 if inputs == outputs else _conv(inputs, outputs, 1)
    return (
        _norm(inputs) + _conv(inputs, outputs) + _linear(embedding, outputs) + _norm(outputs) + _conv(outputs, outputs)
    ) + through


def _attention(channels: int) -> int:
    """Norm, query, key, value and output."""
    return _norm(channels) + 4 * _linear(channels, channels)


def ddpm_parameters(widths: Sequence[int], attends: Sequence[bool], blocks: int = 2, image_channels: int = 3) -> int:
    """The U-Net of Ho et al. (2020), appendix B, layer by layer."""
    embedding = 4 * widths[0]
    total = _linear(widths[0], embedding) + _linear(embedding, embedding) + _conv(image_channels, widths[0])
    skips, width = [widths[0]], widths[0]
    for level, out in enumerate(widths):
        for _ in range(blocks):
            total += _residual(width, out, embedding) + (_attention(out) if attends[level] else 0)
            width = out
            skips.append(out)
        if level < len(widths) - 1:
            total += _conv(out, out)  # halves, with stride 2
            skips.append(out)
    total += 2 * _residual(width, width, embedding) + _attention(width)
    for level, out in reversed(list(enumerate(widths))):
        for _ in range(blocks + 1):
            total += _residual(width + skips.pop(), out, embedding) + (_attention(out) if attends[level] else 0)
            width = out
        if level:
            total += _conv(out, out)  # after doubling
    assert not skips
    return total + _norm(width) + _conv(width, image_channels)


def test_the_count_is_the_published_one() -> None:
    """35.7 M (Ho et al., 2020, appendix B); google/ddpm-cifar10-32 has exactly these."""
    assert ddpm_parameters((128, 256, 256, 256), (False, True, False, False)) == 35_746_307


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cifar10-iet-agc", 35_746_307),
        ("cifar100-iet-agc", 35_746_307),
        ("cifar100-conditional-iet-agc", 35_746_307 + 100 * 512),  # a row of the timestep embedding's width per class
        ("afhq-dog-iet-agc", 78_700_803),
    ],
)
def test_the_unet_has_the_parameters_of_ddpm(name: str, expected: int) -> None:
    settings = load_preset(name)
    widths = [settings.model.channels * m for m in settings.model.multipliers]
    size = 64 if name.startswith("afhq") else 32
    attends = [size // 2**level in settings.model.attention for level in range(len(widths))]
    by_hand = ddpm_parameters(widths, attends) + (settings.model.classes or 0) * 4 * settings.model.channels
    model = unet(settings)
    assert sum(parameter.numel() for parameter in model.parameters()) == by_hand == expected
    # The authors also keep the sines of the 1,000 timesteps as a table of 1,000 x 128 numbers that is not trained;
    # ours are computed, and no number of the model that is trained differs.
    assert not list(model.buffers())


def test_the_layers_have_the_shapes_of_ddpm() -> None:
    model = unet(load_preset("cifar10-default"))
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert shapes["conv_in.weight"] == (128, 3, 3, 3)
    assert shapes["time_embedding.linear_1.weight"] == (512, 128)
    assert shapes["time_embedding.linear_2.weight"] == (512, 512)
    assert shapes["down_blocks.0.downsamplers.0.conv.weight"] == (128, 128, 3, 3)
    assert shapes["down_blocks.1.resnets.0.conv1.weight"] == (256, 128, 3, 3)
    assert shapes["down_blocks.1.attentions.0.to_q.weight"] == (256, 256)
    assert shapes["up_blocks.0.resnets.0.conv1.weight"] == (256, 512, 3, 3)
    assert shapes["up_blocks.3.resnets.2.conv1.weight"] == (128, 256, 3, 3)
    assert shapes["conv_out.weight"] == (3, 128, 3, 3)
    assert [len(block.resnets) for block in model.down_blocks] == [2] * 4  # pyright: ignore
    assert [len(block.resnets) for block in model.up_blocks] == [3] * 4  # pyright: ignore


def test_a_fresh_model_predicts_next_to_nothing() -> None:
    """As DDPM's and the authors' do: what is left is the last convolution's, 1e-5 times Xavier's.

    The normalised features before it have mean square 1, and silu leaves 0.356 of that, so 128 x 9 of them, at
    variance 1e-10 x 2 / ((128 + 3) x 9) each, have the deviation 8.3e-6 within an image, less what the border takes.
    """
    torch.manual_seed(0)
    settings = load_preset("cifar10-default")
    model = build_unet(32, 3, **settings.model.architecture()).eval()
    with torch.inference_mode():
        deviation = model(torch.randn(4, 3, 32, 32), torch.tensor([0, 300, 600, 999])).sample.std()
    assert 5e-6 < deviation < 1.2e-5
    # The authors keep PyTorch's epsilon, 1e-5; this is that of DDPM and of google/ddpm-cifar10-32.
    assert {module.eps for module in model.modules() if isinstance(module, torch.nn.GroupNorm)} == {1e-6}


# -- presets


def test_every_experiment_has_every_method() -> None:
    assert set(PRESETS) <= set(preset_names())
    assert {name for name in preset_names() if name.startswith(("cifar", "afhq"))} == set(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_what_all_presets_of_the_paper_have_in_common(name: str) -> None:
    settings, (data, _) = load_preset(name), parts(name)
    assert settings.data.name == data.removesuffix("-conditional")
    assert settings.data.num_train is None
    assert settings.data.planted_images == 0
    assert settings.data.flips == (data != "afhq-dog")
    assert settings.data.resize == ("bilinear" if data == "afhq-dog" else "bicubic")  # of CIFAR nothing is resized
    assert settings.data.convert_to is None
    assert settings.model.classes == (100 if data == "cifar100-conditional" else None)
    assert (settings.model.channels, settings.model.blocks, settings.model.groups) == (128, 2, 32)
    assert settings.model.multipliers == ((1, 2, 2, 2, 4) if data == "afhq-dog" else (1, 2, 2, 2))
    assert settings.model.attention == ((32,) if data == "afhq-dog" else (16,))
    assert settings.model.dropout == 0.1
    assert settings.model.initialization == "ddpm"
    assert settings.method.decay == 0.8
    assert settings.method.sharding == "stratified"
    assert not settings.method.keep_duplicates_together
    train = settings.train
    assert (train.learning_rate, train.weight_decay, train.grad_clip, train.ema_decay) == (2e-4, 0, 1, 0.9999)
    sample = settings.sample
    assert (sample.num, sample.steps, sample.weights, sample.first_seed) == (65_536, 50, "raw", 0)
    assert settings.init.model is None


@pytest.mark.parametrize("name", PRESETS)
def test_what_each_method_changes(name: str) -> None:
    settings, (data, method) = load_preset(name), parts(name)
    batch = 60 if data == "afhq-dog" else 128
    depth = 7_900 if data == "afhq-dog" else 39_060  # steps of a member over all rounds
    member_warmup = 118 if data == "afhq-dog" else 586
    averaged = method in {"iet", "iet-agc"}
    assert (settings.method.members, settings.method.rounds) == ((10, 10) if averaged else (1, 1))
    assert settings.method.skip_below == (0.5 if method in {"agc", "iet-agc"} else 0)
    assert settings.method.random_skip == (0.13 if method == "random-skip" else 0)
    assert settings.train.batch_size == (10 * batch if method == "large-batch" else batch)
    steps: dict[str, int] = dict.fromkeys(("iet", "iet-agc"), depth // 10)
    steps |= dict.fromkeys(("early-stop", "large-batch"), depth)
    assert settings.train.steps == steps.get(method, 400_000)
    short = method in {"iet", "iet-agc", "large-batch"}
    assert settings.train.warmup_steps == (member_warmup if short else 5_000)


@pytest.mark.parametrize("data", DATA)
def test_rounds_and_warm_up_are_counted_in_shard_epochs(data: str) -> None:
    """100 and 15 of them, to the nearest step."""
    settings = load_preset(f"{data}-iet-agc")
    per_epoch = SIZES[data] / settings.method.members / settings.train.batch_size
    assert abs(settings.train.steps - 100 * per_epoch) <= 0.5
    assert abs(settings.train.warmup_steps - 15 * per_epoch) <= 0.5
    assert warmup(settings.train.warmup_steps, settings.train.warmup_steps) == 1
    assert warmup(settings.train.warmup_steps - 1, settings.train.warmup_steps) < 1


@pytest.mark.parametrize(("data", "images"), [("cifar10", 499_968), ("afhq-dog", 47_400)])
def test_the_images_seen_in_a_round(data: str, images: int) -> None:
    """By what is drawn: every image of the shard 100 times, give or take the last batch."""
    settings = load_preset(f"{data}-iet-agc")
    steps, batch = settings.train.steps, settings.train.batch_size
    shard = -(-SIZES[data] // settings.method.members)
    assert steps * batch == images
    counts = torch.zeros(shard, dtype=torch.int64)
    for step in range(steps):
        drawn = draw_batch(0, 0, step, shard, batch, (1, 1, 1), torch.device("cpu")).positions
        counts += drawn.bincount(minlength=shard)
    assert counts.sum() == images
    assert {99, 100} >= set(counts.tolist()) or {100, 101} >= set(counts.tolist())


@pytest.mark.parametrize(("classes", "count"), [(10, 50_000), (100, 50_000), (1, 4_739)])
def test_a_shard_has_a_tenth_of_each_class(classes: int, count: int) -> None:
    labels = torch.arange(count) % classes
    for shard in partition(labels, 10, "stratified", 0):
        found = labels[shard].bincount(minlength=classes)
        assert found.min() >= count // classes // 10
        assert found.max() <= -(-count // classes // 10)


def test_the_average_is_a_constant_one() -> None:
    """0.9999 from the first step on, which diffusers' EMAModel is not."""
    module = torch.nn.Linear(1, 1, bias=False).double()
    torch.nn.init.zeros_(module.weight)
    average = ExponentialMovingAverage(module, load_preset("cifar10-default").train.ema_decay)
    torch.nn.init.ones_(module.weight)
    for step in range(1, 4):
        average.update(module)
        assert average.module.weight.item() == pytest.approx(1 - 0.9999**step, rel=1e-9)


def test_noise_schedule_and_sampler_are_the_papers() -> None:
    scheduler = make_scheduler()
    betas = torch.linspace(1e-4, 0.02, NUM_TIMESTEPS, dtype=torch.float64)
    torch.testing.assert_close(scheduler.alphas_cumprod.double(), (1 - betas).cumprod(0), rtol=1e-4, atol=1e-7)
    scheduler.set_timesteps(load_preset("cifar10-default").sample.steps)
    assert scheduler.timesteps.tolist() == list(range(981, 0, -20))
    assert scheduler.config["prediction_type"] == "epsilon"


# -- Stable Diffusion


@pytest.mark.parametrize("name", ["default", "iet-agc"])
def test_the_settings_of_stable_diffusion_are_those_of_the_authors_command(name: str) -> None:
    """--resolution=256 --center_crop --random_flip --learning_rate=2.5e-6 --lr_scheduler constant_with_warmup
    --lr_warmup_steps=5000 --max_train_steps=2000 --train_batch_size=8 --clients_num=4 --total_round=25
    --mem_ratio=1.25, then -nb 4000; and what it leaves to their code: AdamW's weight decay, the norm of the gradient,
    first captions, truncated, and a bilinear Resize.
    """
    settings = load_preset(f"sd21-laion10k-{name}")
    data, text, train, sample = settings.data, settings.text, settings.train, settings.sample
    assert (data.name, data.convert_to, LAION_SHAPE) == ("laion-10k", None, (3, 256, 256))
    assert (data.resize, data.flips, data.num_train, data.planted_images) == ("bilinear", True, None, 0)
    told = {"captions": "first", "too_long": "cut"}
    assert text == validate({"text": told}).text  # and none of the mitigations
    assert settings.lora == validate({}).lora
    assert (train.batch_size, train.learning_rate, train.warmup_steps) == (8, 2.5e-6, 5000)
    assert (train.weight_decay, train.grad_clip) == (0.01, 1)
    assert (sample.num, sample.steps, sample.guidance, sample.weights) == (4000, 50, 7.5, "raw")
    mitigations = ("random_tokens", "random_numbers", "repeat_words", "embedding_noise")
    assert (sample.scheduler, *(getattr(sample, each) for each in mitigations)) == ("ddim", 0, 0, 0, 0)
    assert settings.init.model == ""
    members, rounds, steps = (4, 25, 2000) if name == "iet-agc" else (1, 1, 200_000)
    assert (settings.method.members, settings.method.rounds, train.steps) == (members, rounds, steps)
    assert settings.method.skip_below == (1 / 1.25 if name == "iet-agc" else 0)
    assert (settings.method.decay, settings.method.random_skip) == (0.8, 0)
    assert seen(f"sd21-laion10k-{name}") == 1_600_000


def test_the_warm_up_of_stable_diffusion_ends_in_a_members_third_round() -> None:
    settings = load_preset("sd21-laion10k-iet-agc").train
    ends = settings.warmup_steps / settings.steps
    assert (ends, warmup(5000, settings.warmup_steps)) == (2.5, 1)
    assert warmup(4999, settings.warmup_steps) < 1


def test_the_authors_own_default_run_and_the_variants_are_settings() -> None:
    """What the comment at the top of the preset says; 4 x 4 images a step by accumulation there."""
    default = load_preset("sd21-laion10k-default")
    comment = (resources.files("iet_agc.config") / "presets" / "sd21-laion10k-default.toml").read_text(encoding="utf-8")
    words = next(line for line in comment.splitlines() if line.startswith("#   --")).removeprefix("#").split()
    theirs = override(default, {name.removeprefix("--"): value for name, value in zip(*[iter(words)] * 2, strict=True)})
    train = theirs.train
    assert (train.learning_rate, train.warmup_steps, train.batch_size, train.steps) == (5e-6, 10_000, 4 * 4, 100_000)
    assert theirs.total_steps * train.batch_size == seen("sd21-laion10k-default")
    variants = {"text.captions": "random", "data.flips": "false", "train.warmup_steps": "0", "data.resize": "bicubic"}
    assert len(differences(default, override(default, variants))) == len(variants)


# -- equal compute


def seen(name: str) -> int:
    settings = load_preset(name)
    return settings.total_steps * settings.train.batch_size


@pytest.mark.parametrize("data", DATA)
def test_compute_is_equal_where_it_says_so(data: str) -> None:
    full = seen(f"{data}-iet-agc")
    assert seen(f"{data}-iet") == seen(f"{data}-large-batch") == full == 10 * seen(f"{data}-early-stop")
    assert seen(f"{data}-agc") == seen(f"{data}-random-skip") == seen(f"{data}-default")
    assert full / seen(f"{data}-default") == pytest.approx(0.1975 if data == "afhq-dog" else 0.9765, abs=1e-4)


# -- a preset's whole way, with a small model and few steps


@pytest.mark.parametrize(
    "name", ["cifar10-default", "cifar100-agc", "cifar100-conditional-iet-agc", "afhq-dog-iet-agc"]
)
def test_a_preset_runs_from_images_to_samples(name: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    small = {"model.channels": "4", "model.groups": "4", "model.blocks": "1", "train.batch_size": "2"}
    small |= {"train.steps": "1", "sample.num": "3", "sample.steps": "2", "run.preview_images": "2"}
    settings = override(load_preset(name), small)
    if settings.method.rounds > 2:
        settings = override(settings, {"method.rounds": "2", "method.members": "3"})
    size, classes = (64 if name.startswith("afhq") else 32), settings.model.classes or 1
    pixels = torch.randint(256, (100, 3, size, size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    train(settings, ImageSet(pixels, name, torch.arange(100) % classes), tmp_path / "run", torch.device("cpu"))
    sample_run(tmp_path / "run", tmp_path / "samples", device="cpu")
    samples, seeds = load_samples(tmp_path / "samples")
    assert (samples.shape, seeds) == ((3, size, size), [0, 1, 2])
    assert (samples.labels is not None) == (settings.model.classes is not None)
    drawn = (tmp_path / "run" / "telemetry.csv").read_text().splitlines()[1:]
    assert sum(int(line.split(",")[2]) for line in drawn) == settings.total_steps * 2
