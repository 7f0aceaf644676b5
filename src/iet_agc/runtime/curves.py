"""Curves of training: JSON lines and TensorBoard on disk."""

import functools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from iet_agc.runtime.errors import UserError
from iet_agc.runtime.files import replace_text, writing
from iet_agc.runtime.reading import parse_json, read_bytes

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["BANDS", "Curves", "Meter", "read_curve"]

#: The timesteps are told apart in this many bands of equal width, from little noise to much.
BANDS = 10


class Meter:
    """Sums over training steps, kept on the device until a point of the curve is due.

    Args:
        num_timesteps: of the noise schedule.
        device: where the losses are.
    """

    def __init__(self, num_timesteps: int, device: torch.device) -> None:
        self.num_timesteps = num_timesteps
        self.device = device
        self.reset()

    def reset(self) -> None:
        """Start a new point."""
        self.steps = 0
        self.loss = torch.zeros((), dtype=torch.float64, device=self.device)
        self.seen, self.skipped = (torch.zeros(BANDS, dtype=torch.int64, device=self.device) for _ in range(2))

    def add(self, losses: Tensor, keep: Tensor, timesteps: Tensor) -> None:
        """Take in one batch: losses float (B,), keep bool (B,), timesteps int64 (B,); B may be 0."""
        if not len(losses):  # of DP-SGD, whose batches are as large as chance has it
            return
        band = timesteps * BANDS // self.num_timesteps
        self.steps += 1
        self.loss += losses.double().mean()
        self.seen.index_add_(0, band, torch.ones_like(timesteps))
        self.skipped.index_add_(0, band, (~keep).long())

    def to(self, device: torch.device) -> None:
        """Move the sums to where the losses are."""
        self.device = device
        self.loss, self.seen, self.skipped = (sums.to(device) for sums in (self.loss, self.seen, self.skipped))

    def state(self) -> dict[str, Tensor]:
        """The sums of a point that is not due yet, by name; nothing where there are none."""
        if not self.steps:
            return {}
        sums = {"steps": torch.tensor(self.steps), "loss": self.loss, "seen": self.seen, "skipped": self.skipped}
        return {f"meter.{name}": tensor for name, tensor in sums.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave, which may stand among other tensors."""
        self.reset()
        if "meter.steps" in state:
            self.steps = int(state["meter.steps"])
            self.loss, self.seen, self.skipped = (state[f"meter.{name}"] for name in ("loss", "seen", "skipped"))
            self.to(self.device)

    def point(self) -> dict[str, Any]:
        """Mean loss over all samples, and the skipped share, in total and per band; 0 of no samples, None of a band."""
        seen, skipped = self.seen.tolist(), self.skipped.tolist()
        return {
            "loss": float(self.loss) / max(self.steps, 1),
            "skip_rate": sum(skipped) / max(sum(seen), 1),
            "skip_rate_bands": [s / n if n else None for s, n in zip(skipped, seen, strict=True)],
        }


class Curves:
    """The curve of one member, in RUN/curves and RUN/tensorboard.

    Args:
        run: the run's folder.
        member: its number.
        step: where the member stands; points after it, left by a session that was killed, are dropped.
    """

    def __init__(self, run: Path, member: int, step: int) -> None:
        name = f"member-{member:04d}"
        self.file = run / "curves" / f"{name}.jsonl"
        self.file.parent.mkdir(parents=True, exist_ok=True)
        kept = [point for point in read_curve(self.file) if point["step"] <= step]
        replace_text(self.file, "".join(json.dumps(point) + "\n" for point in kept))
        self._folder, self._purge_step = run / "tensorboard" / name, step + 1

    @functools.cached_property
    def board(self) -> "SummaryWriter":
        """TensorBoard's writer, opened with the first point: a finished run adds none."""
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self._folder), purge_step=self._purge_step)

    def add(self, point: dict[str, Any]) -> None:
        """Append a point, which has a "step"."""
        with writing(self.file), self.file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(point) + "\n")
        for name, value in point.items():
            if isinstance(value, list):
                for band, share in enumerate(value):
                    if share is not None:
                        self.board.add_scalar(f"{name}/{band}", share, point["step"])
            elif name != "step":
                self.board.add_scalar(name, value, point["step"])

    def add_grid(self, grid: Tensor, step: int) -> None:
        """Show a preview grid, uint8 (3, H, W)."""
        self.board.add_image("preview", grid, step)

    def flush(self) -> None:
        """Write what TensorBoard holds back: a resume that starts here must find it."""
        if "board" in self.__dict__:
            self.board.flush()

    def close(self) -> None:
        """Flush, and close TensorBoard's file."""
        if "board" in self.__dict__:
            self.board.close()


def read_curve(file: Path) -> list[dict[str, Any]]:
    """The points of a curve; a last line that was cut off by a kill is left out.

    Raises:
        UserError: another line is no point: an object with a step, of numbers and lists of numbers, or null in them.
    """
    lines = read_bytes(file).split(b"\n") if file.exists() else [b""]
    points = [_read_point(line) for line in lines[:-1]]  # the last one has no end: it was cut off, or is empty
    if None in points:
        raise UserError(f"{file} is damaged: line {points.index(None) + 1} is no point of a curve; remove the file")
    return [point for point in points if point is not None]


def _read_point(line: bytes) -> dict[str, Any] | None:
    try:
        point = parse_json(line, "the point")
    except UserError:
        return None
    if not isinstance(point, dict) or type(point.get("step")) is not int:
        return None
    numbers = [n for value in point.values() for n in (value if isinstance(value, list) else [value]) if n is not None]
    return point if all(type(each) in (int, float) and math.isfinite(each) for each in numbers) else None
