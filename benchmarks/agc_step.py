"""What Anti-Gradient Control adds to a training step: batch 128 on the paper's U-Net for 32 x 32.

Two figures, measured in turns in one run: a step with AGC against the same step with `losses.mean()`, and AGC's own
calls (keep, mean of the kept, update) by themselves, as a share of the step.

    python benchmarks/agc_step.py [--batch-size 128] [--repeats 5] [--threads 2] [--device cpu]
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable

import torch

from iet_agc.agc import AntiGradientControl
from iet_agc.diffusion import make_scheduler, per_sample_loss
from iet_agc.models import build_unet


def timed(action: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    device, count = torch.device(arguments.device), arguments.batch_size
    model, scheduler = build_unet(32, 3), make_scheduler()
    model.to(device)  # pyright: ignore[reportArgumentType]
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4, fused=True)
    agc = AntiGradientControl(1000, 0.5, 0.8).to(device)
    images = torch.rand(count, 3, 32, 32, device=device) * 2 - 1
    timesteps = torch.randint(1000, (count,), device=device)
    noise = torch.randn_like(images)
    losses = torch.rand(count, device=device, requires_grad=True)

    def step(reduce: Callable[[torch.Tensor], torch.Tensor]) -> None:
        reduce(per_sample_loss(model, scheduler, images, timesteps, noise)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    actions = {
        "step_without_agc": lambda: step(lambda each: each.mean()),
        "step_with_agc": lambda: step(lambda each: agc(each, timesteps)),
        "agc_alone": lambda: agc(losses, timesteps).backward(),
    }
    for action in actions.values():
        action()
    times = {name: [] for name in actions}
    for _ in range(arguments.repeats):
        for name, action in actions.items():
            times[name].append(timed(action, device))
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(
        json.dumps(
            {
                "machine": platform.processor() or platform.machine(),
                "torch": torch.__version__,
                "device": str(device),
                "threads": arguments.threads,
                "batch_size": count,
                "seconds": medians,
                "ratio_with_to_without": medians["step_with_agc"] / medians["step_without_agc"],
                "agc_share_of_step": medians["agc_alone"] / medians["step_without_agc"],
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
