"""What a model is conditioned on while it draws: a class or a prompt for the image of each seed, or nothing."""

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["ClassLabels", "Conditioning", "Prompts"]


@dataclass(frozen=True)
class ClassLabels:
    """Of a class-conditional model. Without it, the image of a seed is of class seed % classes, all classes in turn.

    Attributes:
        only: the class of all images.
    """

    only: int


@dataclass(frozen=True)
class Prompts:
    """Of a text-to-image model.

    Attributes:
        texts: one or more; the image of a seed has prompt seed % number of prompts, all in turn.
        cuts: whether prompts that are too long lose their end; else they are refused.
    """

    texts: Sequence[str]
    cuts: bool = False

    def of(self, seeds: Sequence[int]) -> list[str]:
        """The prompt of each seed's image."""
        return [self.texts[seed % len(self.texts)] for seed in seeds]


#: None: of a model that is conditioned on nothing, or on all its classes in turn.
Conditioning = ClassLabels | Prompts | None
