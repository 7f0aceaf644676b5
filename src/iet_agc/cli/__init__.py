"""The command line. Each verb parses, calls one function and prints its result on stdout.

That is a few lines for people on a terminal, and JSON anywhere else or where it is asked for (`--json`).

Exit status: 0; 1 when a check failed or training broke; 2 on bad input, with one line on stderr, or where the result
cannot be written; 130 or 143 when stopped by SIGINT or SIGTERM. It stays what it is where nobody reads the result, see
`streams`.
"""

import argparse
import math
import re
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias, cast

from iet_agc.runtime import torchrun
from iet_agc.runtime.errors import CheckFailed, UserError, did_you_mean, one_line
from iet_agc.runtime.silence import silenced
from iet_agc.runtime.streams import kept_apart, put

if TYPE_CHECKING:
    from iet_agc.auditing.schema import AuditRecord
    from iet_agc.cli.results import Shown
    from iet_agc.data.mending import Mending
    from iet_agc.runtime.stop import Stopped

    _Verbs: TypeAlias = "argparse._SubParsersAction[_Parser]"  # pyright: ignore[reportPrivateUsage]

__all__ = ["main"]

#: Verbs whose work processes share; of any other, the first one does all.
_SHARED = {"train", "sample", "audit", "detect", "membership", "attack"}

#: Verbs that show progress.
_LONG = {"demo", "init", "pipeline", "curve", "duplicates", "bench", "verify", "shards", "average", *_SHARED}

#: Verbs that take settings, `--section.name VALUE`, and settings without a section.
_WITH_SETTINGS, _TOP_SETTINGS = ("train", "pipeline"), ("name", "description")

#: What is true of a verb that Ctrl-C stopped, for people.
_AGAIN = "stopped; the same command starts from the beginning"
_IN_PARTS = "stopped; the parts that are finished are kept, and the same command goes on with the rest"
_TRAINING = "stopped while no member was in training; bundles are kept, and the same command goes on from the last ones"
_ALL = "stopped; bundles and finished parts are kept, and the same command goes on from the last ones"

#: What is said when a run is first asked to stop.
_SAVING = "stopping: every member takes its step to the end and saves; a second signal ends this at once"

_EPILOG = (
    "Progress goes to stderr, the result to stdout: as JSON where that is no terminal, or with --json. "
    "'iet-agc VERB --help' tells more of each verb."
)


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Print the message and exit with status 2."""
        self.exit(2, f"{self.prog}: {one_line(message)}; see '{self.prog} --help'\n")

    def print_help(self, file: object = None) -> None:
        """Print the help as a result is printed."""
        if status := put(self.format_help().rstrip(), 0):
            self.exit(status)


class _Version(argparse.Action):
    """Prints the version as a result is printed."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        parser.exit(put(f"iet-agc {version('iet-agc')}", 0))


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one verb and exit."""
    with kept_apart():
        sys.exit(_status(sys.argv[1:] if arguments is None else list(arguments)))


def _status(arguments: Sequence[str]) -> int:
    """Run one verb and print its result; the exit status."""
    from iet_agc.runtime.stop import Stopped

    parser = _parser()
    if not arguments:
        print(parser.format_help(), end="", file=sys.stderr)
        return 2  # nothing was done, which a script whose variable is empty must notice
    try:
        _check_words(_verbs(parser), arguments)
    except UserError as error:
        return _failed(str(error), 2)
    parsed, rest = parser.parse_known_args(arguments)
    try:
        if rest and parsed.verb not in _WITH_SETTINGS:
            raise UserError(f"unknown argument {rest[0]!r}; see 'iet-agc {parsed.verb} --help'")
        if parsed.verb not in _SHARED and not torchrun.is_first():
            return 0
        parsed.rest = rest
        with silenced(parsed.quiet):
            status, result = parsed.run(parsed)
        return status if result is None else put(_presented(parsed, result), status)
    except Stopped as stopped:
        return _stopped(stopped)
    except KeyboardInterrupt:
        return _failed(parsed.stopped, 128 + signal.SIGINT)
    except CheckFailed as error:
        return _failed(str(error), 1)
    except UserError as error:
        return _failed(f"{_refused(error, parsed)}{_option(error.field)}", 2)
    except OSError as error:
        return _failed(_of_system(error), 2)


def _check_words(verbs: Mapping[str, argparse.ArgumentParser], arguments: Sequence[str]) -> None:
    """Refuse a verb, or an option of a verb without settings, that there is not: argparse names no other one.

    Raises:
        UserError: the first; the message names the nearest.
    """
    verb = arguments[0]
    if verb.startswith("-"):
        return
    if verb not in verbs:
        raise UserError(f"unknown verb {verb!r}{did_you_mean(verb, [*verbs])}; 'iet-agc --help' lists them")
    options = sorted({option for action in verbs[verb]._actions for option in action.option_strings})
    written = arguments[1 : arguments.index("--")] if "--" in arguments else arguments[1:]
    for word in written:
        name = word.partition("=")[0]
        is_setting = verb in _WITH_SETTINGS and ("." in name or name[2:] in _TOP_SETTINGS)
        if name.startswith("--") and name not in options and not is_setting:
            raise UserError(f"unknown option {name!r}{did_you_mean(name, options)}; see 'iet-agc {verb} --help'")


def _presented(parsed: argparse.Namespace, result: object) -> str:
    from iet_agc.cli.presentation import presented

    return presented(parsed, result)


def _failed(message: str, status: int) -> int:
    print(f"iet-agc: {one_line(message)}", file=sys.stderr)
    return status


def _option(field: str | None) -> str:
    """How the command line calls an argument or a setting."""
    if field is None:
        return ""
    return f" (--{field if '.' in field else field.replace('_', '-')})"


def _refused(error: UserError, parsed: argparse.Namespace) -> str:
    """What is wrong; of image files the options of the verb that mend them as well, and where all are listed."""
    from iet_agc.data.mending import UnusableFilesError, list_beside

    if not isinstance(error, UnusableFilesError):
        return str(error)
    place = list_beside(error, getattr(parsed, "out", None))
    pairs = {
        name: f"--{name.replace('_', '-')}{'' if value == 'true' else f' {value}'}"
        for name, value in error.mends.items()
        if name != "convert_to"
    }
    if not hasattr(parsed, "on_bad"):  # data.resize is how convert_to resizes
        pairs = {name: f"--data.{name} {value}" for name, value in error.mends.items() if name != "resize"}
    options = f" ({' '.join(pairs.values())})" if pairs else ""
    return f"{error.short}{options}; all are listed in {place}"


def _of_system(error: OSError) -> str:
    """What the operating system refused, and of which file."""
    if error.strerror is None:
        return str(error) or "the operating system gave up without a reason"
    return f"{error.strerror}: {error.filename}" if error.filename else error.strerror


def _stopped(stopped: "Stopped") -> int:
    """Say where a run goes on, once for all processes."""
    status = 128 + stopped.signal
    return _failed(str(stopped), status) if torchrun.is_first() else status


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        "iet-agc",
        description="Train image diffusion models that do not copy their training images, and prove it.",
        epilog=_EPILOG,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB", parser_class=_Parser)
    order = _add_demo, _add_init, _add_pipeline, _add_train, _add_curve, _add_sample, _add_audit, _add_check
    others = _add_detect, _add_membership, _add_attack, _add_duplicates, _add_report, _add_compare, _add_bench
    last = _add_card, _add_pack, _add_verify, _add_shards, _add_average, _add_presets, _add_completion
    for add in (*order, *others, *last):
        add(verbs)
    for name, verb in verbs.choices.items():
        verb.set_defaults(quiet=False)
        if name != "completion":
            verb.add_argument("--json", action="store_true", help="print the result as JSON on a terminal as well")
        if name in _LONG:
            verb.add_argument("--quiet", action="store_true", help="show no progress")
    return parser


def _verbs(parser: argparse.ArgumentParser) -> Mapping[str, argparse.ArgumentParser]:
    """The parser of each verb."""
    (action,) = (each for each in parser._actions if each.dest == "verb")
    return cast("Mapping[str, argparse.ArgumentParser]", action.choices)


def _verb(
    verbs: "_Verbs",
    name: str,
    run: Callable[[argparse.Namespace], tuple[int, object]],
    text: str,
    stopped: str = _AGAIN,
    **options: Any,
) -> argparse.ArgumentParser:
    parser = verbs.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False, **options
    )
    parser.set_defaults(run=run, stopped=stopped)
    return parser


def _add_demo(verbs: "_Verbs") -> None:
    parser = _verb(verbs, "demo", _demo, "the main job on embedded data, minutes on two cores", _ALL)
    parser.add_argument(
        "--out", type=Path, default=Path("runs/demo"), help="folder for runs and report (default: %(default)s)"
    )


def _demo(arguments: argparse.Namespace) -> tuple[int, object]:
    if torchrun.is_one_of_several():
        raise UserError("demo starts processes of its own: run it without torchrun")

    from iet_agc.cli import summary, terminal
    from iet_agc.cli.demo import demo
    from iet_agc.cli.presentation import for_people

    result = demo(arguments.out)
    if not for_people(arguments):
        print("\n".join(summary.demo(cast("Shown", result), terminal.width())), file=sys.stderr)
    return 0, result


def _add_init(verbs: "_Verbs") -> None:
    from iet_agc.cli.init import add_arguments

    parser = _verb(verbs, "init", _init, "look at a folder of images and write settings that fit it, to train by")
    add_arguments(parser)
    _add_mending(parser)
    _add_device(parser, "train")


def _init(arguments: argparse.Namespace) -> tuple[int, object]:
    from iet_agc.cli.init import run
    from iet_agc.data.mending import Mending

    return run(arguments, Mending(arguments.orient, arguments.background, arguments.on_bad))


def _add_pipeline(verbs: "_Verbs") -> None:
    parser = _verb(
        verbs, "pipeline", _pipeline, "build a small text-to-image pipeline that 'train --init' starts from, in minutes"
    )
    parser.add_argument(
        "preset", metavar="PRESET", help="whose image set it is for; settings of section data may follow"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="PIPELINE", help="folder of the pipeline")
    parser.add_argument(
        "--steps", type=int, default=2000, help="training steps of its VAE, of 32 images (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of its weights and batches (default: %(default)s)")


def _pipeline(arguments: argparse.Namespace) -> tuple[int, object]:
    from iet_agc.config.overrides import override
    from iet_agc.config.presets import load_preset

    pairs = _pairs(arguments.rest)
    if other := [name for name in pairs if not name.startswith("data.")]:
        raise UserError(f"setting {other[0]!r} has no effect on a pipeline, those of section data have: leave it out")
    if arguments.steps < 1 or arguments.seed < 0:
        raise UserError(f"--steps {arguments.steps} --seed {arguments.seed}: give 1 step or more, and a seed from 0 on")
    settings = override(load_preset(arguments.preset), pairs)

    from iet_agc.text_to_image.bootstrap import build_pipeline

    return 0, build_pipeline(settings.data, arguments.out, arguments.steps, arguments.seed)


def _add_train(verbs: "_Verbs") -> None:
    parser = _verb(verbs, "train", _train, "train a model; the same command again resumes", _TRAINING, add_help=False)
    parser.add_argument("preset", nargs="?", metavar="PRESET", help="see 'iet-agc presets'; or a .toml file")
    parser.add_argument("--out", type=Path, metavar="RUN", help="folder of the run")
    parser.add_argument(
        "--init", metavar="MODEL", help="train this model further: a run, a diffusers pipeline folder or a hub id"
    )
    parser.add_argument(
        "-h", "--help", action="store_true", help="show all settings, with their values in PRESET, and exit"
    )


def _train(arguments: argparse.Namespace) -> tuple[int, object]:
    from iet_agc.config.overrides import customized
    from iet_agc.config.presets import load_preset
    from iet_agc.config.settings import Settings

    settings = load_preset(arguments.preset) if arguments.preset else Settings()
    if arguments.help:
        from iet_agc.cli import terminal
        from iet_agc.cli.train_help import train_help

        return put(train_help(arguments.preset, settings, terminal.width()), 0), None
    if not arguments.preset:
        raise UserError("train needs a PRESET; 'iet-agc presets' lists them")
    if not arguments.out:
        raise UserError("train needs --out RUN, the folder of the run")
    given = {} if arguments.init is None else {"init.model": arguments.init}
    settings = customized(settings, _pairs(arguments.rest) | given)

    from iet_agc.cli.paths import check_train

    check_train(settings)

    from iet_agc.runtime.malloc import keep_freed_memory
    from iet_agc.runtime.progress import say
    from iet_agc.runtime.stop import StopRequest
    from iet_agc.training import loop

    keep_freed_memory()
    asked = StopRequest((signal.SIGINT, signal.SIGTERM), lambda: say(_SAVING) if torchrun.is_first() else None)
    summary = loop.start(settings, arguments.out, stop=asked)
    return 0, summary if torchrun.is_first() else None


def _pairs(rest: Sequence[str]) -> dict[str, str]:
    """`--a.b 1 --c.d=2` as {"a.b": "1", "c.d": "2"}."""
    pairs, words = {}, list(rest)
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            raise UserError(f"unexpected argument {word!r}: settings are written --section.name VALUE")
        name, equals, value = word[2:].partition("=")
        if not equals:
            if not words:
                raise UserError(f"setting {name!r} has no value")
            value = words.pop(0)
        pairs[name] = value
    return pairs


def _add_sample(verbs: "_Verbs") -> None:
    parser = _verb(
        verbs, "sample", _sample, "draw images from a trained model; the same command again resumes", _IN_PARTS
    )
    parser.add_argument("source", type=Path, metavar="RUN", help="a finished run, or a diffusers pipeline folder")
    parser.add_argument("--out", type=Path, required=True, metavar="SAMPLES", help="folder of the sample set")
    parser.add_argument(  # torchrun takes --num for the beginning of an option of its own, wherever it stands
        "--num-images", "--num", dest="num", type=int, metavar="N", help="how many (default: the run's sample.num)"
    )
    parser.add_argument("--steps", type=int, help="of the sampler, per image (default: the run's sample.steps)")
    parser.add_argument(
        "--weights", choices=["raw", "ema"], help="which weights draw (default: the run's sample.weights)"
    )
    parser.add_argument(
        "--precision",
        choices=["auto", "float32", "bfloat16"],
        help="of the model's products; auto: bfloat16 where the device has it (default: the run's sample.precision)",
    )
    parser.add_argument("--first-seed", type=int, help="seed of the first image (default: the run's sample.first_seed)")
    parser.add_argument(
        "--class",
        dest="label",
        type=int,
        metavar="N",
        help="class of all images, of a class-conditional model (default: class seed %% classes, all in turn)",
    )
    _add_text_options(parser)
    parser.add_argument(
        "--format", choices=["npz", "png"], default="npz", help="one array, or a file per image (default: %(default)s)"
    )
    guard = parser.add_argument_group("guard against copies")
    guard.add_argument(
        "--guard",
        metavar="TRAIN",
        help="draw again, with further seeds, what the audit would call a copy of TRAIN: a run, or training images",
    )
    guard.add_argument(
        "--amg",
        metavar="TRAIN",
        help="Anti-Memorization Guidance: push images away from those of TRAIN while they are drawn; not of "
        "text-to-image",
    )
    guard.add_argument(
        "--amg-strength", type=float, metavar="S", help="weight of AMG (default: the run's sample.amg_strength)"
    )
    guard.add_argument("--held-out", metavar="Z", help="real images that set the cut of both (default: TRAIN's)")
    guard.add_argument("--flips", action="store_true", help="count mirrored copies, too")
    _add_device(parser, "sample")


def _add_text_options(parser: argparse.ArgumentParser) -> None:
    text = parser.add_argument_group("text-to-image")
    prompts = text.add_mutually_exclusive_group()
    prompts.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="a prompt per line, all in turn by seed (default: the run's training captions, first ones first)",
    )
    prompts.add_argument("--prompt", metavar="TEXT", help="the same prompt for all images")
    text.add_argument("--guidance", type=float, help="weight of the prompt (default: the run's sample.guidance)")
    text.add_argument(
        "--scheduler",
        choices=["ddim", "dpm++", "pndm", "euler"],
        help="the sampler (default: the run's sample.scheduler)",
    )
    for name, kind, what in (
        ("random-tokens", int, "random words put into each prompt"),
        ("random-numbers", int, "random numbers put into each prompt"),
        ("repeat-words", int, "words of each prompt repeated in it"),
        ("embedding-noise", float, "deviation of Gaussian noise on the embedded prompt"),
    ):
        mitigation = f"against copying: {what} (default: the run's sample.{name.replace('-', '_')})"
        text.add_argument(f"--{name}", type=kind, metavar="S" if kind is float else "N", help=mitigation)


def _add_device(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument(
        "--device", choices=["auto", "cpu", "cuda"], default="auto", help=f"where to {what} (default: %(default)s)"
    )


def _add_mending(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--orient", action="store_true", help="of folders: turn images as their EXIF orientation says")
    parser.add_argument(
        "--background",
        metavar="COLOUR",
        help="of folders: put transparent images on this colour: white, black or #rrggbb",
    )
    parser.add_argument(
        "--on-bad",
        choices=["fail", "skip"],
        default="fail",
        help="of folders, files that cannot be used: refuse the set, or leave them out (default: %(default)s)",
    )


def _add_sizes(parser: argparse.ArgumentParser) -> None:
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--resize", type=_size, metavar="HxW", help="of folders: bring images of other sizes to this one, such as 64x64"
    )
    size.add_argument(
        "--crop", type=_size, metavar="HxW", help="of folders: cut this size out of the middle of larger images"
    )


def _mending(arguments: argparse.Namespace) -> "Mending":
    from iet_agc.data.mending import Mending

    return Mending(arguments.orient, arguments.background, arguments.on_bad, arguments.resize, arguments.crop)


def _sample(arguments: argparse.Namespace) -> tuple[int, object]:
    if not (arguments.guard or arguments.amg) and (arguments.held_out or arguments.flips):
        raise UserError("--held-out and --flips are those of a guard: give --guard TRAIN as well, or --amg TRAIN")
    if arguments.amg_strength is not None and not arguments.amg:
        raise UserError("--amg-strength has no effect alone: give --amg TRAIN as well")

    from iet_agc.cli.paths import check_sample

    check_sample(arguments)

    from iet_agc.auditing.sources import load_guard
    from iet_agc.runtime.malloc import keep_freed_memory
    from iet_agc.sampling.sample_set import read_prompts, sample_run

    keep_freed_memory()
    given = {
        name: getattr(arguments, name)
        for name in (
            *("num", "steps", "weights", "first_seed", "precision", "guidance", "scheduler", "amg_strength"),
            *("random_tokens", "random_numbers", "repeat_words", "embedding_noise"),
        )
        if getattr(arguments, name) is not None
    }
    prompts = [arguments.prompt] if arguments.prompt is not None else []
    prompts = read_prompts(arguments.prompts) if arguments.prompts else prompts
    guards = {  # each training set is read once
        train: load_guard(train, arguments.held_out, arguments.flips)
        for train in dict.fromkeys((arguments.guard, arguments.amg))
        if train
    }
    summary = sample_run(
        arguments.source,
        arguments.out,
        given,
        file_format=arguments.format,
        device=arguments.device,
        guard=guards.get(arguments.guard),
        amg=guards.get(arguments.amg),
        label=arguments.label,
        prompts=prompts,
    )
    return 0, summary if torchrun.is_first() else None


#: What a set of images may be given as.
_KINDS_OF_IMAGES = (
    "a run, a folder of images, tar archives or parquet tables (a folder, a file, or a pattern such as 'DIR/*.tar'), "
    "an .npz or .npy file, or the name of an image set"
)


def _add_audit(verbs: "_Verbs") -> None:
    parser = _verb(verbs, "audit", _audit, "measure how much of a sample set is copied from a training set", _IN_PARTS)
    parser.add_argument("--train", required=True, metavar="X", help=f"the training images: {_KINDS_OF_IMAGES}")
    parser.add_argument(
        "--samples",
        required=True,
        metavar="Y",
        help="the generated images: a sample set, a folder, archives, tables, or an array file",
    )
    parser.add_argument(
        "--held-out",
        metavar="Z",
        help=f"real images that were not trained on: {_KINDS_OF_IMAGES}; of a run, what it holds out",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="AUDIT", help="folder of the audit")
    parser.add_argument("--flips", action="store_true", help="look for mirrored copies, too")
    parser.add_argument(
        "--extractor",
        action="append",
        default=[],
        metavar="NAME",
        help="features of quality (the first) and in which to look for copies, too (all): pixels, efficientnet-lite0, "
        "a network of torch-fidelity, or a TorchScript or ONNX file; may be repeated (default: pixels for tiny images, "
        "or else Inception if its weights are on disk, or else efficientnet-lite0)",
    )
    parser.add_argument(
        "--no-quality", action="store_true", help="measure copies only; by default they are looked for in pixels"
    )
    parser.add_argument(
        "--download",
        action="store_true",
        help="fetch the published weights of torch-fidelity's networks where they are missing, and of dinov2-* the "
        "code that is run; only files with the known SHA-256 are used, wherever they came from",
    )
    parser.add_argument(
        "--clip",
        metavar="MODEL",
        help="CLIP score of samples that were drawn by prompts: a CLIP model's folder, or its hub id",
    )
    parser.add_argument(
        "--convert-to",
        type=_shape,
        metavar="CxHxW",
        help="bring every image to this size, such as 3x64x64, as the run of --train resizes its own, or else bicubic",
    )
    parser.add_argument(
        "--groups",
        nargs="?",
        const=True,
        default=False,
        metavar="COPIES",
        help="neighbours are groups of exact and near copies among the training images: those that are found here, or "
        "of a folder of 'iet-agc duplicates', or a table of imagededup (.json) or fastdup (.csv)",
    )
    parser.add_argument(
        "--transformed",
        action="store_true",
        help="look for copies that were mirrored, shifted, cropped or made brighter or flatter, for halves and for "
        "blends of two, too; one cut for all of them, which needs --held-out",
    )
    _add_mending(parser)
    _add_sizes(parser)
    parser.add_argument(
        "--memory", type=_bytes, default="2", metavar="GIB", help="working memory of a search (default: %(default)s)"
    )
    parser.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help="keep the features of training and held-out images in this folder, by their pixels and the network's "
        "weights: another audit against them computes those of its samples only",
    )
    _add_device(parser, "compute")
    parser.add_argument(
        "--fail-above",
        type=_share,
        metavar="SHARE",
        help="exit with status 1 if a larger share of samples, by its lower limit, is below the calibrated cut in "
        "pixels or in any feature space, such as 0.02, of which 0.01 is chance, or, of a TorchScript or ONNX "
        "file, above the calibrated cut on similarity; or where the held-out images cannot tell",
    )


def _shape(text: str) -> tuple[int, int, int]:
    sizes = [int(size) for size in text.lower().split("x") if size.isdecimal()]
    if len(sizes) != 3 or text.lower() != "x".join(map(str, sizes)) or sizes[0] not in (1, 3) or 0 in sizes:
        raise argparse.ArgumentTypeError(f"{text!r} is not CxHxW with 1 or 3 channels, such as 3x64x64")
    return sizes[0], sizes[1], sizes[2]


def _size(text: str) -> str:
    from iet_agc.data.mending import SIZE

    size = text.lower() if "x" in text.lower() else f"{text}x{text}"
    if not re.fullmatch(SIZE, size):
        raise argparse.ArgumentTypeError(f"{text!r} is not HxW, such as 64x64")
    return size


def _bytes(text: str) -> int:
    return int(1024**3 * _number(text, 2**-20, 2**20, "a number of GiB above 0"))


def _share(text: str) -> float:
    return _number(text, 0, 1, "a share from 0 to 1")


def _number(text: str, least: float, most: float, what: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not least <= number <= most:
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
    return number


def _audit(arguments: argparse.Namespace) -> tuple[int, object]:
    if arguments.fail_above is not None and not arguments.held_out:
        raise UserError("--fail-above needs a calibrated cut: give real images that were not trained on, --held-out Z")

    from iet_agc.cli.paths import check_audit

    check_audit(arguments)

    from iet_agc.auditing.finished import Asked, finished_audit

    asked = Asked(
        arguments.train,
        arguments.samples,
        arguments.held_out,
        arguments.out,
        arguments.flips,
        arguments.extractor,
        arguments.convert_to,
        _mending(arguments),
        arguments.clip,
        arguments.device,
        not arguments.no_quality,
        arguments.groups,
        arguments.transformed,
    )
    if done := finished_audit(asked, arguments.fail_above):
        return _judged(arguments, done)

    from iet_agc.auditing.run import audit_sources

    numbers = audit_sources(
        asked,
        fail_above=arguments.fail_above,
        memory=arguments.memory,
        cache=arguments.cache,
        download=arguments.download,
    )
    if not torchrun.is_first():
        return 0, None  # where one process fails, torchrun ends the others, who may be printing the result
    return _judged(arguments, numbers)


def _judged(arguments: argparse.Namespace, numbers: "AuditRecord") -> tuple[int, object]:
    """Exit status and result of an audit; what is said of it, where no people read the result."""
    from iet_agc.auditing.verdict import said
    from iet_agc.cli.presentation import for_people

    if (words := said(numbers)) and not for_people(arguments):
        print(f"iet-agc: {words}", file=sys.stderr)
    return int(numbers.gate is not None and numbers.gate.failed), numbers.model_dump(mode="json")


def _add_check(verbs: "_Verbs") -> None:
    parser = _verb(verbs, "check", _check, "decide by a finished audit whether more is copied than is allowed, at once")
    parser.add_argument("audit", type=Path, metavar="AUDIT", help="folder of an audit that had held-out images")
    parser.add_argument(
        "--fail-above",
        type=_share,
        required=True,
        metavar="SHARE",
        help="exit with status 1 if a larger share of samples, by its lower limit, is copied in pixels or in any "
        "feature space, such as 0.02, of which 0.01 is chance; or where the held-out images cannot tell",
    )


def _check(arguments: argparse.Namespace) -> tuple[int, object]:
    from iet_agc.auditing.verdict import check_audit
    from iet_agc.cli.presentation import for_people
    from iet_agc.metrics.gate import sentence

    found = check_audit(arguments.audit, arguments.fail_above)
    if not for_people(arguments):
        print(f"iet-agc: {sentence(found)}", file=sys.stderr)
    return int(found.failed), found.model_dump(mode="json")


def _add_curve(verbs: "_Verbs") -> None:
    parser = _verb(verbs, "curve", _curve, "tell when a run that was watched starts to copy", _IN_PARTS)
    parser.add_argument(
        "run_folder",
        type=Path,
        metavar="RUN",
        help="a run with run.watch_every; with run.keep_watched for --num-images; or the folder of a MemorizationWatch",
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="folder of the curve (default: RUN/curve)")
    parser.add_argument(
        "--num-images",
        "--num",
        dest="num",
        type=int,
        metavar="N",
        help="draw so many images with each model that was kept (default: what was measured while it trained)",
    )
    parser.add_argument("--steps", type=int, help="of the sampler, per image (default: the run's sample.steps)")
    _add_device(parser, "compute")


def _curve(arguments: argparse.Namespace) -> tuple[int, object]:
    if arguments.steps is not None and arguments.num is None:
        raise UserError("--steps are of the images that are drawn: give --num-images N as well")

    from iet_agc.cli.paths import check_curve

    out = arguments.out or arguments.run_folder / "curve"
    check_curve(arguments.run_folder, out)

    from iet_agc.auditing.curve import draw_curve

    return 0, draw_curve(arguments.run_folder, out, arguments.num, arguments.steps, arguments.device)


def _add_detect(verbs: "_Verbs") -> None:
    parser = _verb(
        verbs, "detect", _detect, "tell memorized prompts of text-to-image, without its training images", _IN_PARTS
    )
    parser.add_argument("source", type=Path, metavar="RUN", help="a finished run, or a diffusers pipeline folder")
    prompts = parser.add_mutually_exclusive_group()
    prompts.add_argument("--prompts", type=Path, metavar="FILE", help="the prompts to look at, one per line")
    prompts.add_argument("--prompt", metavar="TEXT", help="the only one")
    prompts.add_argument(
        "--planted",
        action="store_true",
        help="of a run with planted duplicates: their captions as memorized prompts, and as many other captions",
    )
    parser.add_argument(
        "--memorized", type=Path, metavar="FILE", help="which of the prompts are known to be: says how well it tells"
    )
    parser.add_argument(
        "--seeds", type=int, default=4, metavar="N", help="images of each prompt, of seeds 0, 1, ... (default: 4)"
    )
    parser.add_argument("--steps", type=int, help="DDIM steps per image (default: the run's sample.steps)")
    parser.add_argument("--first-steps", type=int, metavar="N", help="stop after so many of them (default: all)")
    parser.add_argument("--guidance", type=float, help="weight of the prompt (default: the run's sample.guidance)")
    parser.add_argument(
        "--weights", choices=["raw", "ema"], help="which weights draw (default: the run's sample.weights)"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DETECTION", help="folder of the result")
    _add_device(parser, "compute")


def _detect(arguments: argparse.Namespace) -> tuple[int, object]:
    if arguments.memorized and not arguments.prompts:
        raise UserError("--memorized says which of many prompts are: give --prompts FILE as well")

    from iet_agc.cli.paths import check_detect

    check_detect(arguments)

    from iet_agc.auditing.memorized_prompts import detect_prompts, planted_prompts
    from iet_agc.sampling.sample_set import read_prompts

    prompts = [] if arguments.prompt is None else [arguments.prompt]
    prompts = read_prompts(arguments.prompts) if arguments.prompts else prompts
    memorized = read_prompts(arguments.memorized) if arguments.memorized else None
    if arguments.planted:
        prompts, memorized = planted_prompts(arguments.source)
    names = ("steps", "weights", "guidance")
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    summary = detect_prompts(
        arguments.source,
        arguments.out,
        prompts,
        memorized,
        arguments.seeds,
        arguments.first_steps,
        given,
        arguments.device,
    )
    return 0, summary if torchrun.is_first() else None


def _add_membership(verbs: "_Verbs") -> None:
    parser = _verb(
        verbs, "membership", _membership, "tell whether losses give away which images a model was trained on", _IN_PARTS
    )
    _add_model_and_images(parser)
    parser.add_argument(
        "--num-images",
        "--num",
        dest="num",
        type=int,
        default=1000,
        metavar="N",
        help="at most so many images of either kind (default: %(default)s)",
    )
    parser.add_argument(
        "--draws", type=int, default=100, metavar="T", help="losses of each image, by as much noise (default: 100)"
    )
    _add_weights(parser)
    _add_device(parser, "compute")


def _add_model_and_images(parser: argparse.ArgumentParser) -> None:
    """A model over pixels, the two kinds of images that are compared in it, and where the result goes."""
    parser.add_argument("source", type=Path, metavar="RUN", help="a finished run, or a diffusers pipeline folder")
    parser.add_argument("--train", metavar="SOURCE", help="training images (default: those of RUN)")
    parser.add_argument(
        "--held-out",
        metavar="SOURCE",
        help="real images of the same kind that were not trained on (default: those that RUN, or --train, holds out)",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the result")


def _add_weights(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", choices=["raw", "ema"], help="of a run (default: the run's sample.weights)")


def _membership(arguments: argparse.Namespace) -> tuple[int, object]:
    from iet_agc.cli.paths import check_model_and_images

    check_model_and_images(arguments)

    from iet_agc.auditing.membership import infer_members

    summary = infer_members(
        arguments.source,
        arguments.out,
        arguments.train,
        arguments.held_out,
        num_images=arguments.num,
        draws=arguments.draws,
        weights=arguments.weights,
        device=arguments.device,
    )
    return 0, summary if torchrun.is_first() else None


def _add_attack(verbs: "_Verbs") -> None:
    parser = _verb(
        verbs, "attack", _attack, "look for copies as an adversary would, with held-out images as control", _IN_PARTS
    )
    _add_model_and_images(parser)
    parser.add_argument(
        "--budget",
        type=int,
        default=2000,
        metavar="N",
        help="plain samples; each other way takes at most as many evaluations of the model (default: %(default)s)",
    )
    parser.add_argument(
        "--steps", type=int, metavar="N", help="of a plain sample (default: the run's sample.steps; of a pipeline 50)"
    )
    _add_weights(parser)
    _add_device(parser, "compute")


def _attack(arguments: argparse.Namespace) -> tuple[int, object]:
    from iet_agc.cli.paths import check_model_and_images

    check_model_and_images(arguments)

    from iet_agc.auditing.attack import attack_model

    summary = attack_model(
        arguments.source,
        arguments.out,
        arguments.train,
        arguments.held_out,
        budget=arguments.budget,
        steps=arguments.steps,
        weights=arguments.weights,
        device=arguments.device,
    )
    return 0, summary if torchrun.is_first() else None


def _add_duplicates(verbs: "_Verbs") -> None:
    parser = _verb(verbs, "duplicates", _duplicates, "find the images that stand in a set more than once")
    parser.add_argument("source", metavar="SOURCE", help=_KINDS_OF_IMAGES)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder for page, table and counts")
    parser.add_argument("--exact", action="store_true", help="only copies that are equal pixel by pixel")
    parser.add_argument("--no-flips", action="store_true", help="do not take mirrored images for copies")
    parser.add_argument(
        "--convert-to", type=_shape, metavar="CxHxW", help="bring every image to this size, such as 3x64x64"
    )
    _add_mending(parser)
    _add_sizes(parser)
    parser.add_argument(
        "--keep-list",
        type=Path,
        metavar="FILE",
        help="write what stays there, one of each group: a path or index a line",
    )
    parser.add_argument(
        "--pairs",
        type=Path,
        metavar="FILE",
        help="write the copies there as other programs do: .json as imagededup, .csv as fastdup",
    )
    parser.add_argument(
        "--fail-above",
        type=_share,
        metavar="SHARE",
        help="exit with status 1 if a larger share of the images is beyond one of each group",
    )


def _duplicates(arguments: argparse.Namespace) -> tuple[int, object]:
    from iet_agc.cli.paths import check_source

    check_source(arguments.source)

    from iet_agc.auditing.duplicates import find_duplicates

    numbers = find_duplicates(
        arguments.source,
        arguments.out,
        near=not arguments.exact,
        flips=not arguments.no_flips,
        convert_to=arguments.convert_to,
        mending=_mending(arguments),
        keep_list=arguments.keep_list,
        pairs=arguments.pairs,
        fail_above=arguments.fail_above,
    )
    return int(numbers["gate"] is not None and numbers["gate"]["failed"]), numbers


def _add_report(verbs: "_Verbs") -> None:
    parser = _verb(verbs, "report", _report, "turn audits into one HTML page")
    parser.add_argument(
        "audits",
        type=Path,
        nargs="+",
        metavar="AUDIT",
        help="folder of an audit; or that of one MemorizationWatch alone",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="the page (default: report.html in the first AUDIT)")


def _report(arguments: argparse.Namespace) -> tuple[int, object]:
    from iet_agc.cli.paths import check_report

    check_report(arguments)

    from iet_agc.api.verbs import report

    return 0, {"report": str(report(arguments.audits, arguments.out))}


def _add_compare(verbs: "_Verbs") -> None:
    parser = _verb(verbs, "compare", _compare, "put audits side by side, by experiment: differences, frontier, table")
    parser.add_argument(
        "runs",
        type=Path,
        nargs="+",
        metavar="RUN",
        help="a run that holds its audit in RUN/audit, or an audit's folder",
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write the comparison there: HTML, PNG and CSV")


def _compare(arguments: argparse.Namespace) -> tuple[int, object]:
    from iet_agc.cli.paths import check_compare
    from iet_agc.cli.presentation import for_people

    check_compare(arguments)

    from iet_agc.reporting.comparison import compare, differences_from_first, plain, table, warnings

    rows = compare(arguments.runs)
    differences = differences_from_first(rows)
    apart = {
        name: {column: cell and cell.model_dump(mode="json") for column, cell in cells.items()}
        for name, cells in differences.items()
    }
    result: dict[str, object] = {"presets": plain(rows), "differences": apart, "warnings": (warned := warnings(rows))}
    if arguments.out:
        from iet_agc.reporting.comparison_page import write_comparison

        result["files"] = write_comparison(rows, differences, arguments.out)
    if not for_people(arguments):
        print("\n".join([table(rows), *(f"iet-agc: warning: {warning}" for warning in warned)]), file=sys.stderr)
    return 0, result


def _add_bench(verbs: "_Verbs") -> None:
    from iet_agc.cli.bench import add_arguments

    parser = _verb(verbs, "bench", _bench, "train, sample and audit every method of a board, and compare them", _ALL)
    add_arguments(parser)


def _bench(arguments: argparse.Namespace) -> tuple[int, object]:
    from iet_agc.cli.bench import run

    return run(arguments)


def _add_card(verbs: "_Verbs") -> None:
    parser = _verb(verbs, "card", _card, "write the model card of a run: what it is, and what audits found")
    parser.add_argument("run_folder", type=Path, metavar="RUN", help="a finished run")
    parser.add_argument(
        "--audit",
        type=Path,
        action="append",
        default=[],
        dest="audits",
        metavar="AUDIT",
        help="folder of an audit of its samples; may be repeated (default: the card says that it was not audited)",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="the card (default: README.md in RUN)")


def _card(arguments: argparse.Namespace) -> tuple[int, Any]:
    from iet_agc.cli.paths import check_card

    check_card(arguments)

    from iet_agc.auditing.model_card import write_card

    return 0, write_card(arguments.run_folder, arguments.audits, arguments.out)


def _add_pack(verbs: "_Verbs") -> None:
    from iet_agc.cli.pack import add_pack

    add_pack(_verb(verbs, "pack", _pack, "put audits into a folder that is handed over, and that anyone can check"))


def _pack(arguments: argparse.Namespace) -> tuple[int, object]:
    from iet_agc.cli.pack import pack

    return pack(arguments)


def _add_verify(verbs: "_Verbs") -> None:
    from iet_agc.cli.pack import add_verify

    add_verify(_verb(verbs, "verify", _verify, "check a pack: every byte, and every number counted again"))


def _verify(arguments: argparse.Namespace) -> tuple[int, object]:
    from iet_agc.cli.pack import verify

    return verify(arguments)


def _add_shards(verbs: "_Verbs") -> None:
    from iet_agc.cli.shards import add_arguments

    parser = _verb(verbs, "shards", _shards, "cut an image set into shards, for a trainer that knows nothing of them")
    add_arguments(parser)


def _shards(arguments: argparse.Namespace) -> tuple[int, object]:
    from iet_agc.cli.shards import run

    return run(arguments)


def _add_average(verbs: "_Verbs") -> None:
    from iet_agc.cli.average import add_arguments

    parser = _verb(verbs, "average", _average, "write the weighted mean of models that any program trained")
    add_arguments(parser)


def _average(arguments: argparse.Namespace) -> tuple[int, object]:
    from iet_agc.cli.average import run

    return run(arguments)


def _add_presets(verbs: "_Verbs") -> None:
    _verb(verbs, "presets", _presets, "list the presets")


def _presets(_: argparse.Namespace) -> tuple[int, object]:
    from iet_agc.config.presets import load_preset, preset_names

    return 0, {name: load_preset(name).description for name in preset_names()}


def _add_completion(verbs: "_Verbs") -> None:
    parser = _verb(verbs, "completion", _completion, "print a script that completes commands in a shell")
    parser.add_argument("shell", choices=["bash", "zsh"], help='bash: eval "$(iet-agc completion bash)" in .bashrc')


def _completion(arguments: argparse.Namespace) -> tuple[int, object]:
    from iet_agc.cli.completion import completion
    from iet_agc.config.presets import preset_names
    from iet_agc.config.settings import Settings, documented

    settings = [name for name, *_ in documented(Settings())]
    return put(completion(arguments.shell, _verbs(_parser()), preset_names(), settings), 0), None
