"""The verb average: the weighted mean of models that other programs trained."""

import argparse
from pathlib import Path

from iet_agc.runtime.errors import UserError
from iet_agc.runtime.files import shown

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the verb takes."""
    parser.add_argument(
        "models",
        type=Path,
        nargs="+",
        metavar="MODEL",
        help="diffusers pipelines, folders with config.json and safetensors, or .safetensors files (LoRAs, "
        "checkpoints); all of one kind",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="MEAN", help="the mean: a folder, or of files a .safetensors file"
    )
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument(
        "--weights", type=float, nargs="+", metavar="W", help="a number for each MODEL, any scale (default: all alike)"
    )
    weights.add_argument(
        "--shards", type=Path, metavar="DIR", help="weigh MODEL k by the size of shard k of 'iet-agc shards --out DIR'"
    )
    parser.add_argument(
        "--lora",
        choices=["factors", "exact"],
        default="factors",
        help="of LoRA files. factors: the mean of A and that of B, which is not the mean of the products B A; exact: "
        "that mean, of as many times the rank as there are models, so not for rounds that go on (default: %(default)s)",
    )


def run(arguments: argparse.Namespace) -> tuple[int, object]:
    """Average and write; see `iet_agc.training.average.average_models`."""
    for model in arguments.models:
        if not model.exists():
            raise UserError(f"{shown(model)} is not there")

    from iet_agc.data.shards import shard_sizes
    from iet_agc.training.average import average_models

    weights = shard_sizes(arguments.shards) if arguments.shards else arguments.weights
    told = average_models(arguments.models, arguments.out, weights, arguments.lora)
    return 0, {"out": str(arguments.out), **told}
