"""The verb shards: an image set to shards on disk."""

import argparse
from pathlib import Path

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the verb takes."""
    parser.add_argument(
        "source", type=Path, metavar="SOURCE", help="folder of images, at any depth; or an .npz or .npy file"
    )
    parser.add_argument("--members", type=int, required=True, metavar="K", help="how many shards")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of the lists DIR/shard-0.txt, ... and of the folders DIR/shard-0, ... of links to the images and "
        "their captions (of an array file: lists of indices only)",
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed, another split (default: %(default)s)")
    parser.add_argument(
        "--keep-together",
        choices=["exact", "near"],
        help="put copies of an image into one shard: equal ones, or near and mirrored ones as well (default: none)",
    )
    parser.add_argument("--lists-only", action="store_true", help="write no folders of links")
    parser.add_argument(
        "--on-bad",
        choices=["fail", "skip"],
        default="fail",
        help="skip: leave out files that cannot be images, or be compared, and list them (default: %(default)s)",
    )


def run(arguments: argparse.Namespace) -> tuple[int, object]:
    """Cut and write; see `iet_agc.data.shards.cut_shards`."""
    from iet_agc.runtime.paths import check_images_place

    check_images_place(arguments.source)

    from iet_agc.data.shards import cut_shards

    told = cut_shards(
        arguments.source,
        arguments.out,
        arguments.members,
        arguments.seed,
        arguments.keep_together,
        lists_only=arguments.lists_only,
        on_bad=arguments.on_bad,
    )
    return 0, {"out": str(arguments.out), **told}
