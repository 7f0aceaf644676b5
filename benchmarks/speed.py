"""Speed of training and sampling against what one would write first, in turns in one run, as ratios.

    step        a training step against a plain one: float32, Adam tensor by tensor, EMA tensor by tensor, and the loss
                bank by a Python loop over samples; and the share of the measured peak of matrix products
    agc         a step with AGC against the same step with the mean of all losses
    sampling    `sample` against diffusers' own `DDIMPipeline`, same weights and seeds
    processes   K = 2 members on two processes against one, one thread each

    python benchmarks/speed.py [--parts step agc sampling processes] [--device cpu] [--repeats 5] [--compile]

Tables go to stderr as Markdown, all numbers to stdout as JSON. Medians; the first turn, which warms up, is not counted.
On a GPU use the paper's batch: --batch-size 128.
"""

import argparse
import copy
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMPipeline
from torch.utils.flop_counter import FlopCounterMode

from iet_agc.config.overrides import override
from iet_agc.config.presets import load_preset
from iet_agc.config.settings import Settings
from iet_agc.data.image_set import ImageSet
from iet_agc.diffusion.dropout import BatchDropout
from iet_agc.diffusion.process import make_scheduler, per_sample_loss, predict_noise, to_float
from iet_agc.diffusion.samplers import denoise, initial_noise, rows_at_a_time, sample
from iet_agc.diffusion.unet import build_unet, save_pipeline
from iet_agc.method.agc import AntiGradientControl
from iet_agc.runtime.malloc import keep_freed_memory
from iet_agc.runtime.precision import resolved
from iet_agc.runtime.seeds import generator
from iet_agc.training.batches import draw_batch
from iet_agc.training.loop import train
from iet_agc.training.member import Member
from iet_agc.training.pixels import Pixels

#: Preset, shape of its images, and images per step on a CPU.
NETWORKS = {
    "cifar10-iet-agc": ((3, 32, 32), 8),
    "fashion-mnist-iet-agc": ((1, 28, 28), 64),
    "digits-iet-agc": ((1, 8, 8), 64),
}
PAPER = "cifar10-iet-agc"
PAPER_STEPS, PAPER_BATCH, PAPER_SAMPLES, PAPER_SAMPLING_STEPS = 400_000, 128, 65_536, 50

Numbers = dict[str, Any]


def in_turns(actions: dict[str, Callable[[], object]], repeats: int, device: torch.device) -> dict[str, float]:
    """Median seconds of each action; the first turn is not counted."""
    times: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(repeats + 1):
        for name, action in actions.items():
            began = time.perf_counter()
            action()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times[name].append(time.perf_counter() - began)
    return {name: statistics.median(each[1:]) for name, each in times.items()}


def noise_images(count: int, shape: tuple[int, int, int]) -> torch.Tensor:
    return torch.randint(256, (count, *shape), dtype=torch.uint8, generator=generator("images", 0))


def with_plain_dropout(model: torch.nn.Module) -> torch.nn.Module:
    """The model itself, with torch's dropout, as diffusers builds it."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, BatchDropout):
                setattr(module, name, torch.nn.Dropout(child.p))
    return model


class PlainStep:
    """The method as it reads, without thought of speed."""

    def __init__(self, model: torch.nn.Module, images: torch.Tensor, settings: Settings, device: torch.device) -> None:
        self.settings, self.device, self.images = settings, device, images.to(device)
        self.model = with_plain_dropout(copy.deepcopy(model)).to(device).train()
        self.average = copy.deepcopy(self.model).eval()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=2e-4, fused=False, foreach=False)
        self.bank = [0.0] * 1000
        self.scheduler, self.step = make_scheduler(), 0

    def __call__(self) -> None:
        size, method = self.settings.train.batch_size, self.settings.method
        batch = draw_batch(0, 0, self.step, len(self.images), size, self.images.shape[1:], self.device)
        pixels = to_float(self.images[batch.positions])
        losses = per_sample_loss(self.model, self.scheduler, pixels, batch.timesteps, batch.noise)
        kept = []
        for loss, timestep in zip(losses, batch.timesteps.tolist(), strict=True):
            if loss.item() >= method.skip_below * self.bank[timestep]:
                kept.append(loss)
            self.bank[timestep] = method.decay * self.bank[timestep] + (1 - method.decay) * loss.item()
        (torch.stack(kept).mean() if kept else losses.sum() * 0).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0, foreach=False)
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            for mine, theirs in zip(self.average.parameters(), self.model.parameters(), strict=True):
                mine.copy_(0.9999 * mine + 0.0001 * theirs)
        self.step += 1


def member_step(
    model: torch.nn.Module, images: torch.Tensor, settings: Settings, device: torch.device
) -> Callable[[], object]:
    """One step of a real member at a time."""
    one = Member(0, model, Pixels(images), settings.train, settings.method, device)
    one.to(device)
    steps = one.train(10**9, make_scheduler())
    return lambda: next(steps)


def network(preset: str, arguments: argparse.Namespace) -> tuple[Settings, torch.nn.Module, torch.Tensor]:
    """Settings with the batch of this run, a fresh U-Net and images of noise."""
    shape, batch = NETWORKS[preset]
    settings = override(load_preset(preset), {"train.batch_size": str(arguments.batch_size or batch)})
    torch.manual_seed(0)
    model = build_unet(shape[1], shape[0], **settings.model.architecture())
    return settings, model, noise_images(1024, shape)


def flops_of_a_step(model: torch.nn.Module, images: torch.Tensor, count: int) -> int:
    """Products and sums of forward and backward pass, counted."""
    model = copy.deepcopy(model)
    with FlopCounterMode(display=False) as counter:
        timesteps = torch.zeros(count, dtype=torch.int64)
        losses = per_sample_loss(
            model, make_scheduler(), to_float(images[:count]), timesteps, torch.randn(count, *images.shape[1:])
        )
        losses.mean().backward()
    return counter.get_total_flops()


def peak(dtype: torch.dtype, device: torch.device, size: int) -> float:
    """Measured FLOP/s of one large matrix product."""
    one, other = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    seconds = in_turns({"product": lambda: one @ other}, 5, device)["product"]
    return 2 * size**3 / seconds


def measure_step(arguments: argparse.Namespace, device: torch.device) -> Numbers:
    precisions = ["float32"] + (["bfloat16"] if resolved("auto", device) == "bfloat16" else [])
    peaks = {name: peak(getattr(torch, name), device, 8192 if device.type == "cuda" else 2048) for name in precisions}
    found: Numbers = {"peak_flops": peaks}
    for preset in NETWORKS:
        settings, model, images = network(preset, arguments)
        actions: dict[str, Callable[[], object]] = {"plain": PlainStep(model, images, settings, device)}
        for name in precisions:
            ours = override(settings, {"train.precision": name})
            actions[name] = member_step(model, images, ours, device)
            if arguments.compile and preset == PAPER:
                actions[f"{name}, compiled"] = member_step(
                    model, images, override(ours, {"train.compile": "true"}), device
                )
        seconds = in_turns(actions, arguments.repeats, device)
        size = settings.train.batch_size
        flops = flops_of_a_step(model, images, size)
        best = min(precisions, key=lambda name: seconds[name])
        found[preset] = {
            "batch_size": size,
            "seconds": seconds,
            "ratio_to_plain": {name: value / seconds["plain"] for name, value in seconds.items()},
            "images_per_second": {name: size / value for name, value in seconds.items()},
            "share_of_peak": {name: flops / seconds[name] / peaks[name] for name in precisions},
            "fastest": best,
        }
        if preset == PAPER:
            rate = max(found[preset]["images_per_second"].values())
            found[preset]["hours_of_the_papers_steps"] = PAPER_STEPS * PAPER_BATCH / rate / 3600
        if device.type == "cuda":
            found[preset]["peak_memory_bytes"] = torch.cuda.max_memory_allocated(device)
    return found


def measure_agc(arguments: argparse.Namespace, device: torch.device) -> Numbers:
    settings, model, images = network(PAPER, arguments)
    model = model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4, fused=True)
    scheduler, agc = make_scheduler(), AntiGradientControl(1000, 0.5, 0.8).to(device)
    size = settings.train.batch_size
    batch = draw_batch(0, 0, 0, len(images), size, images.shape[1:], device)
    pixels = to_float(images.to(device)[batch.positions])
    losses = torch.rand(size, device=device, requires_grad=True)

    def step(reduce: Callable[[torch.Tensor], torch.Tensor]) -> None:
        reduce(per_sample_loss(model, scheduler, pixels, batch.timesteps, batch.noise)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    actions: dict[str, Callable[[], object]] = {
        "mean": lambda: step(torch.Tensor.mean),
        "agc": lambda: step(lambda each: agc(each, batch.timesteps)),
        "agc alone": lambda: agc(losses, batch.timesteps).backward(),
    }
    seconds = in_turns(actions, arguments.repeats, device)
    ratios = {
        "agc_to_mean": seconds["agc"] / seconds["mean"],
        "agc_share_of_step": seconds["agc alone"] / seconds["mean"],
    }
    return {"batch_size": size, "seconds": seconds, **ratios}


def measure_sampling(arguments: argparse.Namespace, device: torch.device) -> Numbers:
    _, model, _ = network(PAPER, arguments)
    (shape, _), steps = NETWORKS[PAPER], arguments.sampling_steps
    count = rows_at_a_time(shape, device)
    with tempfile.TemporaryDirectory() as folder:
        save_pipeline(model, make_scheduler(), Path(folder) / "model")  # pyright: ignore[reportArgumentType]
        stock = DDIMPipeline.from_pretrained(Path(folder) / "model").to(device)
    stock.set_progress_bar_config(disable=True)
    model = model.to(device).eval()

    def theirs() -> torch.Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in range(count)]
        found: Any = stock(batch_size=count, generator=generators, num_inference_steps=steps, output_type="np")
        return torch.from_numpy(found.images).permute(0, 3, 1, 2)

    def ours(precision: str) -> torch.Tensor:
        return sample(model, make_scheduler(), range(count), shape, steps, device, precision=precision)  # pyright: ignore

    actions: dict[str, Callable[[], object]] = {"stock": theirs, "float32": lambda: ours("float32")}
    if resolved("auto", device) == "bfloat16":
        actions["bfloat16"] = lambda: ours("bfloat16")
    seconds = in_turns(actions, min(3, arguments.repeats), device)
    scheduler = make_scheduler()
    scheduler.set_timesteps(steps)
    with torch.inference_mode():
        predict = partial(predict_noise, model)
        exact = denoise(predict, scheduler, initial_noise(range(count), shape).to(device))
    difference = ((exact.cpu() / 2 + 0.5).clamp(0, 1) - theirs()).abs().max()
    fastest = min(value for name, value in seconds.items() if name != "stock")
    return {
        "images": count,
        "steps": steps,
        "seconds": seconds,
        "ratio_to_stock": {name: value / seconds["stock"] for name, value in seconds.items()},
        "largest_difference_of_float32": float(difference),
        "minutes_of_the_papers_samples": fastest / count / steps * PAPER_SAMPLES * PAPER_SAMPLING_STEPS / 60,
    }


def measure_processes(arguments: argparse.Namespace, device: torch.device) -> Numbers:
    """Steps per second of all processes together, without start and average."""
    del device
    rates = {1: [], 2: []}
    for _ in range(min(3, arguments.repeats)):
        for count, found in rates.items():
            torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
            done = subprocess.run([*torchrun, __file__, "--worker"], capture_output=True, encoding="utf-8", check=True)
            found.append(sum(float(line) for line in done.stdout.splitlines()))
    medians = {count: statistics.median(found) for count, found in rates.items()}
    return {"steps_per_second": medians, "ratio_2_to_1": medians[2] / medians[1]}


def work() -> None:
    """One process of `measure_processes`: trains its members and prints its steps per second."""
    from iet_agc.runtime import distributed

    shape, _ = NETWORKS["fashion-mnist-iet-agc"]
    changes = {"method.members": "2", "method.rounds": "1", "train.steps": "16", "train.batch_size": "32"}
    settings = override(load_preset("fashion-mnist-iet-agc"), changes | {"run.preview_images": "0"})
    torch.set_num_threads(1)
    keep_freed_memory()
    times: list[float] = []
    device = torch.device("cpu")
    with tempfile.TemporaryDirectory() as folder, distributed.processes(device):
        common = distributed.gather(folder)[0]
        images = ImageSet(noise_images(512, shape), "noise")
        train(settings, images, Path(common) / "run", device, lambda steps: times.append(time.perf_counter()))
    warm = 4  # the first call tells of no step, and the first steps warm up
    print((len(times) - 1 - warm) / (times[-1] - times[warm]), flush=True)


PARTS = {"step": measure_step, "agc": measure_agc, "sampling": measure_sampling, "processes": measure_processes}


def table(numbers: Numbers) -> str:
    """The ratios, as Markdown."""
    lines = ["| measured | against | ratio |", "| --- | --- | --- |"]
    for preset in NETWORKS:
        for name, ratio in numbers.get("step", {}).get(preset, {}).get("ratio_to_plain", {}).items():
            if name != "plain":
                size = numbers["step"][preset]["batch_size"]
                lines.append(f"| step, {preset}, batch {size}, {name} | plain | {ratio:.2f} |")
    if "agc" in numbers:
        lines.append(f"| step with AGC | mean of all losses | {numbers['agc']['agc_to_mean']:.3f} |")
        lines.append(f"| AGC alone | step | {numbers['agc']['agc_share_of_step']:.4f} |")
    for name, ratio in numbers.get("sampling", {}).get("ratio_to_stock", {}).items():
        if name != "stock":
            lines.append(f"| sampling, {name} | stock DDIMPipeline | {ratio:.2f} |")
    if "processes" in numbers:
        lines.append(f"| steps per second, 2 processes | 1 process | {numbers['processes']['ratio_2_to_1']:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--batch-size", type=int, help="of every network (default: what suits a CPU)")
    parser.add_argument("--sampling-steps", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true", help="measure torch.compile, too; it takes minutes on a CPU")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work()
        return
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()  # as train and sample do; it favours the plain ways as much
    device = torch.device(arguments.device)
    numbers: Numbers = {
        "machine": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "torch": torch.__version__,
        "device": str(device),
        "threads": arguments.threads,
    }
    for part in arguments.parts:
        numbers[part] = PARTS[part](arguments, device)
        print(f"{part} done", file=sys.stderr, flush=True)
    print(table(numbers), file=sys.stderr)
    print(json.dumps(numbers, indent=1))


if __name__ == "__main__":
    main()
