"""Memory of members of a text-to-image run on one device: all weights trained, or factors of LoRA.

    python benchmarks/memory.py [--trained full lora] [--members 1 2 4] [--sd21] [--rank 16] [--device cpu]

Every row is a process of its own that makes a U-Net of random weights, then the members, then takes a step of each and
the average of a round. What it holds is read off the kernel (resident memory, Linux), and on a GPU off torch as well.
Numbers of a process without a U-Net are subtracted. The default is a small relative of Stable Diffusion 2.1, whose own
size is --sd21: 866 million parameters, 3.2 GiB; all weights trained, four such members take 70 GiB.

A table goes to stderr as Markdown, all numbers to stdout as JSON.
"""

import argparse
import gc
import json
import multiprocessing
import os
import platform
import re
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from iet_agc.config.settings import validate
from iet_agc.diffusion.process import Scheduler, make_scheduler, per_sample_loss
from iet_agc.method.averaging import average_states
from iet_agc.runtime.seeds import generator
from iet_agc.text_to_image.lora import add_lora
from iet_agc.text_to_image.stable_diffusion import StableDiffusion
from iet_agc.training.batches import Batch
from iet_agc.training.member import Member

SMALL = {"channels": [64, 128, 256, 256], "heads": [1, 2, 4, 4], "text_width": 256}
SD21 = {"channels": [320, 640, 1280, 1280], "heads": [5, 10, 20, 20], "text_width": 1024}
TOKENS = 77

Numbers = dict[str, Any]


class Latents:
    """Noise in place of latents and embedded captions, as `batches.Examples`."""

    def __init__(self, size: int, text_width: int) -> None:
        self.latents = torch.randn(8, 4, size, size, generator=generator("latents"))
        self.texts = torch.randn(8, TOKENS, text_width, generator=generator("texts"))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.latents.shape[1:])

    def __len__(self) -> int:
        return len(self.latents)

    def to(self, device: torch.device) -> "Latents":
        self.latents, self.texts = self.latents.to(device), self.texts.to(device)
        return self

    def losses(self, model: Any, scheduler: Scheduler, batch: Batch, rows: slice) -> Tensor:
        chosen = batch.positions[rows]
        latents, texts = self.latents[chosen], self.texts[chosen]
        return per_sample_loss(model, scheduler, latents, batch.timesteps[rows], batch.noise[rows], texts=texts)


def unet(arguments: argparse.Namespace) -> UNet2DConditionModel:
    """The U-Net of Stable Diffusion 2, of any width."""
    return UNet2DConditionModel(
        sample_size=arguments.size,
        block_out_channels=tuple(arguments.channels),
        attention_head_dim=tuple(arguments.heads),
        cross_attention_dim=arguments.text_width,
        use_linear_projection=True,
    )


def resident(which: str = "VmRSS") -> int:
    """Bytes that this process holds, or with "VmHWM" held at most."""
    gc.collect()
    found = re.search(rf"{which}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    assert found
    return int(found[1]) * 1024


def forget_peak() -> None:
    """Let "VmHWM" count from now on."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def measure(arguments: argparse.Namespace, trained: str, count: int) -> Numbers:
    """One process: a run of `count` members."""
    torch.set_num_threads(arguments.threads)
    device, scheduler = torch.device(arguments.device), make_scheduler()
    settings = validate(
        {"train": {"batch_size": arguments.batch_size, "warmup_steps": 0}, "method": {"members": count}}
    )
    bare = resident()
    torch.manual_seed(0)
    model = unet(arguments)
    whole = sum(parameter.numel() for parameter in model.parameters())
    if trained == "lora":
        add_lora(model, StableDiffusion.PROJECTIONS, arguments.rank, arguments.rank, seed=0)
    initial = resident() - bare
    examples = Latents(arguments.size, arguments.text_width)
    members = [Member(index, model, examples, settings.train, settings.method, device) for index in range(count)]
    forget_peak()
    seconds = [one_step(member, scheduler, device) for member in members]
    held, peak_of_steps = resident() - bare, resident("VmHWM") - bare
    forget_peak()
    mean = average_states((member.shared() for member in members), [1] * count)
    for member in members:
        member.load_shared(mean)
    return {
        "trained": trained,
        "members": count,
        "parameters": whole,
        "trained_parameters": sum(p.numel() for p in members[0].model.parameters() if p.requires_grad),
        "initial_bytes": initial,
        "resident_bytes": held,
        "peak_bytes_of_steps": peak_of_steps,
        "peak_bytes_of_average": resident("VmHWM") - bare,
        "peak_bytes_of_device": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
        "seconds_per_step": seconds,
    }


def one_step(member: Member, scheduler: Scheduler, device: torch.device) -> float:
    """Seconds of a step, without moving the member."""
    member.to(device)
    began = time.perf_counter()
    list(member.train(member.step + 1, scheduler))
    taken = time.perf_counter() - began
    member.to(torch.device("cpu"))
    return taken


def slopes(rows: list[Numbers]) -> Numbers:
    """What a further member holds, from the fewest to the most members that were measured."""
    found = {}
    for trained in dict.fromkeys(row["trained"] for row in rows):
        same = sorted((row for row in rows if row["trained"] == trained), key=lambda row: row["members"])
        first, last = same[0], same[-1]
        if first["members"] < last["members"]:
            each = (last["resident_bytes"] - first["resident_bytes"]) / (last["members"] - first["members"])
            found[trained] = {"bytes": round(each), "bytes_per_parameter": each / first["parameters"]}
    return found


def table(numbers: Numbers) -> str:
    """The rows, as Markdown."""
    lines = [
        "| trained | members | held, GiB | initial model | peak of steps | peak of the average | seconds a step |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in numbers["rows"]:
        kinds = ("resident_bytes", "initial_bytes", "peak_bytes_of_steps", "peak_bytes_of_average")
        sizes = " | ".join(f"{row[kind] / 2**30:.2f}" for kind in kinds)
        lines.append(f"| {row['trained']} | {row['members']} | {sizes} | {min(row['seconds_per_step']):.1f} |")
    for trained, each in numbers["further_member"].items():
        lines.append(
            f"\nA further member, {trained}: {each['bytes'] / 2**20:.1f} MiB, "
            f"{each['bytes_per_parameter']:.2f} bytes per parameter of the U-Net."
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trained", nargs="+", choices=["full", "lora"], default=["full", "lora"])
    parser.add_argument("--members", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--rank", type=int, default=16, help="of LoRA")
    parser.add_argument("--channels", nargs=4, type=int, default=SMALL["channels"], help="of each level")
    parser.add_argument("--heads", nargs=4, type=int, default=SMALL["heads"], help="of attention, at each level")
    parser.add_argument("--text-width", type=int, default=SMALL["text_width"])
    parser.add_argument("--sd21", action="store_true", help="channels, heads and text width of Stable Diffusion 2.1")
    parser.add_argument("--size", type=int, default=32, help="of the latents: 32 is 256 px")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    if arguments.sd21:
        vars(arguments).update(SD21)
    # so that what is freed is given back, and does not count
    os.environ |= {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    rows = []
    for trained in arguments.trained:
        for count in arguments.members:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                rows.append(process.submit(measure, arguments, trained, count).result())
            print(f"{trained}, {count} members: done", file=sys.stderr, flush=True)
    numbers: Numbers = {
        "machine": platform.machine(),
        "torch": torch.__version__,
        "options": vars(arguments),
        "rows": rows,
        "further_member": slopes(rows),
    }
    print(table(numbers), file=sys.stderr)
    print(json.dumps(numbers, indent=1))


if __name__ == "__main__":
    main()
