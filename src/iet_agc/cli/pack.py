"""The verbs pack and verify: evidence that is handed over, and how who receives it checks it."""

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, cast

from iet_agc.runtime.errors import UserError

if TYPE_CHECKING:
    from iet_agc.cli.results import Verified

__all__ = ["add_pack", "add_verify", "pack", "verify"]


def add_pack(parser: argparse.ArgumentParser) -> None:
    """What `pack` takes."""
    parser.add_argument(
        "audits",
        type=Path,
        nargs="+",
        metavar="AUDIT",
        help="folder of an audit; a run that it names, or lies in, comes along with telemetry and model card",
    )
    parser.add_argument(
        "--attack",
        dest="attacks",
        type=Path,
        action="append",
        default=[],
        metavar="FOLDER",
        help="folder of an attack on the weights that were audited, which 'iet-agc attack' wrote; may be repeated",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="PACK", help="folder of the pack")


def pack(arguments: argparse.Namespace) -> tuple[int, object]:
    """Write; see `iet_agc.auditing.pack.pack_audits`."""
    from iet_agc.runtime.paths import check_audit_place

    for folder in arguments.audits:
        check_audit_place(folder)

    from iet_agc.auditing.pack import pack_audits

    return 0, pack_audits(arguments.audits, arguments.out, arguments.attacks)


def add_verify(parser: argparse.ArgumentParser) -> None:
    """What `verify` takes."""
    parser.add_argument("pack", type=Path, metavar="PACK", help="folder of a pack, from anyone")
    parser.add_argument(
        "--train",
        metavar="X",
        help="the training images, as for 'iet-agc audit': with --samples, distances and quality are measured again",
    )
    parser.add_argument("--samples", metavar="Y", help="the samples that were audited")
    parser.add_argument("--held-out", metavar="Z", help="the held-out images, where the audit had some")
    parser.add_argument(
        "--extractor",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="a TorchScript or ONNX network that the audit used; it is loaded only if it has the SHA-256 that is told "
        "of it; may be repeated",
    )
    parser.add_argument(
        "--digest", type=_digest, metavar="SHA256", help="that 'iet-agc pack' told: the pack has to be that one"
    )


def _digest(text: str) -> str:
    if not re.fullmatch("[0-9a-fA-F]{64}", text):
        raise argparse.ArgumentTypeError(f"{text!r:.80} is no SHA-256, 64 hexadecimal digits")
    return text


def verify(arguments: argparse.Namespace) -> tuple[int, object]:
    """Check; see `iet_agc.auditing.verify.verify_pack`. Status 1 where anything differs."""
    from iet_agc.cli.paths import check_source
    from iet_agc.runtime.reading import check_regular

    if (arguments.train is None) != (arguments.samples is None) or (arguments.held_out and not arguments.train):
        raise UserError("to measure again, --train X and --samples Y are needed, and --held-out Z if there were any")
    for source in (arguments.train, arguments.samples, arguments.held_out):
        check_source(source)
    for file in arguments.extractor:
        check_regular(file)

    from iet_agc.auditing.verify import Images, verify_pack
    from iet_agc.cli.presentation import for_people
    from iet_agc.cli.summary import verification

    images = None
    if arguments.train:
        images = Images(arguments.train, arguments.samples, arguments.held_out, extractors=arguments.extractor)
    found = verify_pack(arguments.pack, images, arguments.digest)
    if not (found["sound"] or for_people(arguments)):
        print("\n".join(f"iet-agc: {line.strip()}" for line in verification(cast("Verified", found))), file=sys.stderr)
    return int(not found["sound"]), found
