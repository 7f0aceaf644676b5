"""The verb init: a folder of images to a file of settings."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from iet_agc.data.mending import Mending

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the verb takes, but for the options of mending and of the device."""
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="folder of images, at any depth")
    parser.add_argument(
        "--out", type=Path, default=Path("folder.toml"), metavar="FILE", help="file of settings (default: %(default)s)"
    )
    parser.add_argument(
        "--held-out",
        type=Path,
        metavar="DIR",
        help="folder of images that are never trained on (default: some of FOLDER are held out)",
    )
    parser.add_argument(
        "--method",
        choices=["agc", "iet-agc", "iet", "default"],
        default="agc",
        help="how to train (default: %(default)s, which was the best on our own board)",
    )
    parser.add_argument(
        "--size",
        type=int,
        metavar="PIXELS",
        help="side that images are brought to (default: by the images; at most 32 on a CPU, 128 on a GPU)",
    )


def run(arguments: argparse.Namespace, mending: "Mending") -> tuple[int, object]:
    """Look, choose, try and write; see `iet_agc.training.first_run.init_folder`."""
    from iet_agc.cli.paths import check_init

    check_init(arguments)

    from iet_agc.runtime.malloc import keep_freed_memory
    from iet_agc.training.first_run import init_folder

    keep_freed_memory()
    result = init_folder(
        arguments.folder,
        arguments.out,
        held_out=arguments.held_out,
        mending=mending,
        method=arguments.method,
        size=arguments.size,
        device=arguments.device,
    )
    return 0, result
