"""Sample sets of a pipeline, seeds and steps, as tests ask for them."""

from typing import Any

from iet_agc.config.settings import SampleSettings
from iet_agc.sampling import sample_set
from iet_agc.sampling.conditioning import ClassLabels, Prompts


def draw_samples(pipeline, seeds, out, steps, *, label=None, prompts=None, cuts=False, settings=None, **options):
    """`sample_set.draw_samples` of a range of seeds; `settings` are further ones of section `sample`."""
    asked: dict[str, Any] = {"first_seed": seeds.start, "num": len(seeds), "steps": steps, **(settings or {})}
    told = ClassLabels(label) if label is not None else None if prompts is None else Prompts(prompts, cuts)
    return sample_set.draw_samples(pipeline, out, SampleSettings(**asked), told, **options)
