"""What families with a transformer that learns a flow have in common."""

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from iet_agc.diffusion.process import NUM_TIMESTEPS, flow_sigmas
from iet_agc.diffusion.samplers import Sampler, scheduler_of
from iet_agc.runtime.errors import UserError
from iet_agc.runtime.reading import read_object
from iet_agc.text_to_image.family import TextPipeline
from iet_agc.text_to_image.parts import config_of

__all__ = ["FlowPipeline", "read_flow_scheduler"]


@dataclass(frozen=True)
class FlowPipeline(TextPipeline):
    """A transformer over latents, see `diffusion.process` for what it learns."""

    DENOISER: ClassVar[str] = "transformer"

    @staticmethod
    def read_scheduler(folder: Path) -> FlowMatchEulerDiscreteScheduler:
        """See `TextPipeline`."""
        return read_flow_scheduler(folder / "scheduler")

    def about(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """See `TextPipeline`."""
        return {"predicts": "flow"}, {"sigmas": flow_sigmas(self.scheduler)}

    def sampling_scheduler(self, sampler: Sampler, steps: int) -> Any:
        """With the shift of the size that is drawn, where the scheduler has one; see `TextPipeline`."""
        return scheduler_of(self.scheduler, sampler, steps, self._how_to_step(steps))

    def _how_to_step(self, steps: int) -> dict[str, Any]:
        """Arguments of the scheduler's `set_timesteps`."""
        del steps
        return {"mu": self._shift()} if config_of(self.scheduler).use_dynamic_shifting else {}

    def _shift(self) -> float:
        """mu, a straight line through (tokens, shift) at two sizes: larger images need more noise."""
        config = config_of(self.scheduler)
        tokens = self.latent_size[0] * self.latent_size[1] // self.multiple**2
        few, many = config.base_image_seq_len, config.max_image_seq_len
        slope = (config.max_shift - config.base_shift) / (many - few)
        return tokens * slope + (config.base_shift - slope * few)

    def misfit(self) -> str | None:
        """See `TextPipeline`."""
        count = config_of(self.scheduler).num_train_timesteps
        checks = {
            **self._misfit_of_transformer(),
            f"it has {count} timesteps, not {NUM_TIMESTEPS}": count != NUM_TIMESTEPS,
        }
        return next((reason for reason, wrong in checks.items() if wrong), None)

    @abstractmethod
    def _misfit_of_transformer(self) -> dict[str, bool]:
        """What may be wrong about latents and conditioning, and whether it is."""


def read_flow_scheduler(folder: Path) -> FlowMatchEulerDiscreteScheduler:
    """The noise levels of a flow, sampled by Euler steps.

    Raises:
        UserError: it is damaged, of another kind, or not finite.
    """
    kind = read_object(folder / "scheduler_config.json", finite=False).get("_class_name")
    if not str(kind).startswith("FlowMatch"):
        raise UserError(f"its scheduler is a {kind}, not one of flow matching")
    scheduler: Any = FlowMatchEulerDiscreteScheduler.from_pretrained(folder)
    count = scheduler.config.num_train_timesteps
    if count != NUM_TIMESTEPS:
        raise UserError(f"it has {count} timesteps, not {NUM_TIMESTEPS}")
    levels = flow_sigmas(scheduler)
    if not (levels.isfinite().all() and (levels.diff() > 0).all()):
        raise UserError("its noise levels do not rise")
    return scheduler
