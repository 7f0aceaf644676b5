"""Files that somebody damaged, or made to do harm, and every verb that reads them: one line, or a result.

    python -m tests.fuzz --cases 1000 --seed 0 --seconds 900

A case damages one file of a workshop (`Workshop`), calls the command line in this process, and puts the file back. A
finding is: an exception, or no end in time; a refusal that is not one short line in plain words; something half
written; an input that changed; a pickle that was opened; a file that is known by its digest and was taken damaged.
The same seed makes the same cases.
"""

import argparse
import contextlib
import io
import json
import os
import pickle
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from iet_agc import cli
from iet_agc.config.overrides import override
from iet_agc.config.presets import load_preset
from iet_agc.config.run_folder import annotated
from tests.audit_folders import write_audit
from tests.boards import MINIATURE
from tests.miniature import captioned, save_captioned, save_miniature
from tests.packs import Pooled
from tests.watch_points import write_watch

#: Seconds of a case, characters of a refusal, bytes of address space.
LONGEST, LONGEST_LINE, MOST_MEMORY = 60, 820, 64 * 2**30

#: What only a program says.
_PYTHON = re.compile(
    r"Traceback|Errno|\w(Error|Exception|Warning)\b|malformed node|NoneType|<class|<_io|PosixPath|object has no|"
    r"positional argument|0x[0-9a-f]{8}|__\w+__|np\.\w+\(|datetime\.|not subscriptable"
)

_TINY = {
    **{"data.num_train": "120", "data.planted_images": "4", "data.planted_copies": "3", "model.channels": "8"},
    **{"model.groups": "4", "method.rounds": "1", "train.steps": "2", "train.batch_size": "8", "sample.num": "4"},
    **{"sample.steps": "1", "run.preview_images": "0", "run.threads": "1", "run.device": "cpu"},
}


@dataclass(frozen=True)
class Kind:
    """A kind of input.

    Attributes:
        files: which files are damaged, globs below the workshop.
        verbs: what reads them, words of a command line; OUT stands for a new place.
        known: whether a digest of the file is written somewhere, so that damage must not pass.
        weight: how often it is chosen.
        copied: a folder that the verb writes into, of which each case has a copy, as OUT.
    """

    files: tuple[str, ...]
    verbs: tuple[str, ...]
    known: bool = False
    weight: int = 4
    copied: str | None = None


_AUDIT = "audit --extractor pixels --device cpu --out OUT"
_SAMPLE = "--num 1 --steps 1 --device cpu --out OUT"

KINDS = {
    "image": Kind(("images/*",), (f"{_AUDIT} --train images --samples array.npz",), weight=8),
    "array": Kind(("array.np?",), (f"{_AUDIT} --train array.npz --samples array.npy",), weight=6),
    "copies": Kind(
        ("copies/*.*",),
        tuple(
            f"{_AUDIT} --train images --samples array.npz --groups copies{name}"
            for name in ("", "/groups.csv", "/pairs.json", "/pairs.csv")
        ),
        weight=4,
    ),
    "captions": Kind(
        ("captioned/captions.json", "captioned/metadata.jsonl", "captioned/*.txt"),
        (
            "shards captioned --members 2 --out OUT",
            *(
                f"pipeline emoji --out OUT --data.name folder --data.root captioned --data.captions {captions}"
                for captions in ("captions.json", "metadata.jsonl", "txt")
            ),
        ),
        weight=6,
    ),
    "settings": Kind(("preset.toml",), ("train preset.toml --help",), weight=8),
    "board": Kind(("board.toml", "mine.toml"), ("bench board.toml --out OUT --jobs 0",), weight=6),
    "run": Kind(
        ("run/config.json", "run/identity.json", "run/telemetry.csv", "run/curves/*.jsonl"),
        (f"sample run {_SAMPLE}", f"{_AUDIT} --train run --samples run"),
        weight=6,
    ),
    "bundle": Kind(
        ("begun/bundles/*/bundle.json", "begun/bundles/*/*.safetensors", "begun/config.json"),
        ("train preset.toml --out OUT",),
        weight=2,
        copied="begun",
    ),
    "weights": Kind(("run/ema/unet/*",), (f"sample run {_SAMPLE} --weights ema",), known=True, weight=3),
    "sample set": Kind(("samples/samples.*",), (f"{_AUDIT} --train array.npz --samples samples",)),
    "sample set of a run": Kind(("run/samples/samples.*",), (f"{_AUDIT} --train run --samples run",)),
    "audit": Kind(
        ("audit/audit.json", "audit/*.csv", "audit/*.npz", "audit/*.json"),
        ("report audit --out OUT/page.html", "compare audit --out OUT"),
        weight=8,
    ),
    "pack": Kind(
        ("pack/*.json", "pack/*.html", "pack/audits/*/*", "pack/attacks/*/*"), ("verify pack",), known=True
    ),
    "kept features": Kind(
        ("features/*.safetensors",),
        (
            "audit --train array.npz --samples array.npy --extractor descriptor.pt --cache features --device cpu "
            "--out OUT",
        ),
        weight=3,
    ),
    "membership": Kind(
        ("member/membership.json",),
        ("membership run --out OUT --num 20 --draws 2 --device cpu",),
        weight=2,
        copied="member",
    ),
    "attack": Kind(
        ("attacked/attack.json",),
        ("attack run --out OUT --budget 20 --steps 1 --device cpu",),
        weight=2,
        copied="attacked",
    ),
    "watch": Kind(
        ("watch/watch.jsonl", "watch/memorization-watch.json"),
        ("curve watch --out OUT", "report watch --out OUT/page.html"),
        weight=6,
    ),
    "pipeline": Kind(
        ("unet/model_index.json", "unet/*/*.json", "unet/*/*.safetensors"),
        (f"sample unet {_SAMPLE}", "average unet run/raw --out OUT"),
        weight=6,
    ),
    "text pipeline": Kind(
        ("text/model_index.json", "text/*/*"),
        (f"sample text {_SAMPLE} --prompt dog", "detect text --seeds 1 --steps 1 --device cpu --out OUT --prompt dog"),
        weight=6,
    ),
    "prompts": Kind(
        ("prompts.txt",),
        (f"sample text {_SAMPLE} --prompts prompts.txt",),
        weight=3,
    ),
}  # fmt: skip

#: Command lines with a gap, for values from nowhere.
_VALUES = (
    "sample unet --out OUT --steps 1 --num {}",
    "sample unet --out OUT --num 1 --steps {}",
    "sample unet --out OUT --num 1 --steps 1 --first-seed {}",
    "sample unet --out OUT --num 1 --steps 1 --guidance {}",
    "sample unet --out {} --num 1 --steps 1",
    "sample {} --out OUT",
    "sample text --out OUT --num 1 --steps 1 --prompt {}",
    "detect text --out OUT --seeds {} --prompt dog --steps 1",
    "audit --train {} --samples array.npy --out OUT",
    "audit --train array.npz --samples array.npy --out OUT --convert-to {}",
    "audit --train array.npz --samples array.npy --out OUT --memory {}",
    "audit --train array.npz --samples array.npy --out OUT --extractor {}",
    "audit --train array.npz --samples array.npy --out OUT --clip {}",
    "audit --train array.npz --samples array.npy --out OUT --groups {}",
    "duplicates images --out OUT --pairs {}",
    "pack {} --out OUT",
    "pack made --attack {} --out OUT",
    "verify {}",
    "membership {} --out OUT --num 20 --draws 1",
    "membership run --out OUT --num {}",
    "attack {} --out OUT --budget 20 --steps 1",
    "attack run --out OUT --steps {}",
    "shards images --out OUT --members {}",
    "shards images --out OUT --members 2 --seed {}",
    "average unet {} --out OUT",
    "average unet run/raw --out OUT --weights 1 {}",
    "curve {} --out OUT",
    "curve watch --out {}",
    "report {}",
    "compare {}",
    "train {} --out OUT",
    "train preset.toml --out OUT --init {}",
    "train preset.toml --out OUT --data.root {}",
    "train preset.toml --help --train.steps {}",
    "train preset.toml --help --model.multipliers {}",
    "train preset.toml --help --train.learning_rate {}",
    "train preset.toml --help --{} 3",
    "{}",
)
_ODD_VALUES = (
    *("-1", "0.5", "nan", "inf", "1e999", "9" * 30, "9" * 5000, "x" * 100_000, "[" * 100_000, "", " ", "None", "{}"),
    *("\udcff", "\x1b[31m", "a\nb", ".", "/dev/zero", "/dev/null", "/proc/self/mem", "'", "=", "é" * 300),
    *("os.abort()", "2020-01-01", "[1, [2, [3]]]", "true", "-", "--", "%s%s%n", "{0}", "run", "images"),
)


class Workshop:
    """One small input of each kind, whole, in a folder.

    Args:
        folder: where, new.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        with contextlib.chdir(folder), _quiet():
            self._make()

    def _make(self) -> None:
        rng = np.random.default_rng(0)
        Path("images").mkdir()
        for number, form in enumerate(("png", "jpg", "webp", "bmp", "gif", "tif", "ppm", "png", "jpg")):
            pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(f"images/{number}.{form}")
        pixels = rng.integers(0, 256, (6, 3, 16, 16), dtype=np.uint8)
        np.save("array.npy", pixels)
        np.savez("array.npz", images=pixels)
        shutil.copy("images/0.png", "images/9.png")
        for name in ("pairs.json", "pairs.csv"):
            _run(f"duplicates images --out copies --pairs copies/{name}")
        save_captioned(Path("captioned"), captioned(4, 6))
        texts = json.loads(Path("captioned/captions.json").read_text())
        lines = [json.dumps({"file_name": name, "text": text}) for name, text in texts.items()]
        Path("captioned/metadata.jsonl").write_text("\n".join(lines) + "\n")
        for name, text in texts.items():
            Path("captioned", name).with_suffix(".txt").write_text("\n".join(text) + "\n")
        Path("preset.toml").write_text(annotated(override(load_preset("digits-iet-agc"), _TINY)))
        Path("board.toml").write_text(MINIATURE.replace('["default"]', '["default", "mine.toml"]'))
        Path("mine.toml").write_text('[knob]\nsetting = "model.dropout"\nvalues = [0.1, 0.2]\n')
        _run("train preset.toml --out run")
        _run("sample run --out run/samples --device cpu")
        shutil.copytree("run", "begun")
        for part in ("raw", "ema", "samples"):
            shutil.rmtree(f"begun/{part}")
        (Path("begun") / "identity.json").unlink()
        shutil.copytree("run/ema", "unet")
        _samples(Path("samples"))
        write_audit(Path("audit"))
        _run("membership run --out member --num 20 --draws 2 --device cpu")
        _run("attack run --out attacked --budget 20 --steps 1 --device cpu")
        _run("audit --train run --samples run --out made --extractor pixels --device cpu")
        _run("pack made --attack attacked --out pack")
        torch.jit.script(Pooled()).save("descriptor.pt")
        _run(KINDS["kept features"].verbs[0].replace("OUT", "featured"))
        write_watch(Path("watch"))
        save_miniature(Path("text"))
        Path("prompts.txt").write_text("a red dog\na blue cat\n")


def _samples(folder: Path) -> None:
    """A sample set of 16 x 16 pixels: that of the run, with other pictures."""
    shutil.copytree("run/samples", folder)
    about = json.loads((folder / "samples.json").read_text())
    with np.load(folder / "samples.npz") as arrays:
        seeds = arrays["seeds"]
    images = np.random.default_rng(1).integers(0, 256, (about["num"], 3, 16, 16), dtype=np.uint8)
    np.savez(folder / "samples.npz", images=images, seeds=seeds)


def _run(line: str) -> None:
    with contextlib.suppress(SystemExit):
        cli.main(line.split())


@contextlib.contextmanager
def _quiet() -> Generator[None]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


# -- damage


class _Canary:
    """A pickle that leaves a file where it is opened."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("opened",)


def damaged(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Bytes made worse, and how."""
    ways: list[tuple[str, Callable[[], bytes]]] = [
        ("flip", lambda: _flipped(content, rng, 1)),
        ("flips", lambda: _flipped(content, rng, 30)),
        ("cut", lambda: content[: rng.randrange(max(1, len(content)))]),
        ("lost", lambda: _without(content, rng)),
        ("twice", lambda: content + content),
        ("empty", lambda: b""),
        ("noise", lambda: rng.randbytes(rng.randrange(1, 3000))),
        ("not utf-8", lambda: _inserted(content, rng, b"\xff\xfe\xe9")),
        ("nul", lambda: _inserted(content, rng, b"\0")),
        ("nested", lambda: rng.choice((b"[", b'{"a":', b"a = [", b"((")) * 100_000),
        ("zeros", lambda: content[: rng.randrange(1, len(content) + 1)] + bytes(2**21)),
        ("pickle", lambda: pickle.dumps(_Canary())),
        ("long line", lambda: _inserted(content, rng, b"x" * 100_000)),
        ("digits", lambda: re.sub(rb"\d+", lambda found: rng.choice((found[0], b"9" * 5000)), content, count=9)),
    ]
    if (text := _json_of(content)) is not None:
        ways += [("json", lambda: _edited(text, rng))] * 12
    elif b"=" in content[:4000] and content.isascii():
        ways += [("toml", lambda: _rewritten(content, rng))] * 12
    name, make = rng.choice(ways)
    return name, make()


def _flipped(content: bytes, rng: random.Random, count: int) -> bytes:
    out = bytearray(content)
    for _ in range(count if out else 0):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def _without(content: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(max(1, len(content)))
    return content[:start] + content[start + rng.randrange(1, 200) :]


def _inserted(content: bytes, rng: random.Random, more: bytes) -> bytes:
    place = rng.randrange(len(content) + 1)
    return content[:place] + more + content[place:]


def _json_of(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return None


_ODD_JSON = (
    *("null", "true", "-1", "0", "1e308", "1e999", "NaN", "-Infinity", "9" * 30, "9" * 5000, '""', "[]", "{}", "3.5"),
    *('"' + "x" * 100_000 + '"', "[" * 500 + "]" * 500, '{"a":' * 60 + "1" + "}" * 60, '"\\ud800"', '"a\\u0000b"'),
    *("[[1]]", '"../../etc/passwd"', '"/dev/zero"', '{"sha256": 3}', "1000000000", '"nan"', "[null]", '"<script>"'),
)


def _edited(content: Any, rng: random.Random) -> bytes:
    """One value of a JSON file by another, or left out."""
    content = json.loads(json.dumps(content))
    places = list(_places(content))
    if not places:
        return rng.choice(_ODD_JSON).encode()
    node, key = rng.choice(places)
    if rng.random() < 0.2:
        del node[key]
        return json.dumps(content).encode()
    node[key] = "@@"
    return json.dumps(content).replace('"@@"', rng.choice(_ODD_JSON), 1).encode()


def _places(node: Any) -> Iterator[tuple[Any, Any]]:
    keys = list(node) if isinstance(node, dict) else range(min(3, len(node))) if isinstance(node, list) else []
    for key in keys:
        yield node, key
        yield from _places(node[key])


def _rewritten(content: bytes, rng: random.Random) -> bytes:
    """One value of a TOML file by another."""
    lines = content.decode().split("\n")
    chosen = rng.choice([number for number, line in enumerate(lines) if re.match(r"\w+ = ", line)] or [0])
    value = rng.choice((*_ODD_JSON, "nan", "inf", "-inf", "2020-01-01", "12:00:00", "1_0", "0x10", "'x'", "a.b = 3"))
    lines[chosen] = f"{lines[chosen].partition('=')[0]}= {value}"
    return "\n".join(lines).encode()


#: What can stand in the place of a file.
def _pipe(place: Path) -> None:
    os.mkfifo(place)


def _device(place: Path) -> None:
    place.symlink_to("/dev/zero")


def _nowhere(place: Path) -> None:
    place.symlink_to("nowhere")


def _itself(place: Path) -> None:
    place.symlink_to(place.name)


def _folder(place: Path) -> None:
    place.mkdir()


def _gone(place: Path) -> None:
    del place


def _huge(place: Path) -> None:
    with place.open("wb") as stream:
        stream.truncate(2**31)


_INSTEAD = (_pipe, _device, _nowhere, _itself, _folder, _gone, _huge)


# -- a case


#: What a verb may write: its output, and the list of refused images beside it.
_OUTPUTS = {"out", "out.mending.csv"}


@dataclass(frozen=True)
class Finding:
    """What is wrong.

    Attributes:
        case: which, for another try.
        what: was found.
        detail: of it.
    """

    case: str
    what: str
    detail: str


class _Hang(BaseException):
    pass


class Driver:
    """Makes cases and judges how they end.

    Args:
        folder: of the workshop; must not exist.
        seed: of the cases.
    """

    def __init__(self, folder: Path, seed: int = 0) -> None:
        self.workshop, self.seed = Workshop(folder).folder, seed
        self.statuses: dict[int, int] = {}
        self.slowest = 0.0

    def run(self, number: int) -> list[Finding]:
        """One case, by its number."""
        rng = random.Random(f"{self.seed} {number}")
        with contextlib.chdir(self.workshop):
            if rng.random() < 0.15:
                return self._value(number, rng)
            names = list(KINDS)
            name = rng.choices(names, [KINDS[each].weight for each in names])[0]
            return self._file(f"{self.seed}/{number} {name}", KINDS[name], rng)

    def _value(self, number: int, rng: random.Random) -> list[Finding]:
        line, value = rng.choice(_VALUES), rng.choice(_ODD_VALUES)
        words = [word.replace("{}", value).replace("OUT", "out") for word in line.split()]
        return self._judged(f"{self.seed}/{number} value {line!r} {value[:30]!r}", words)

    def _file(self, case: str, kind: Kind, rng: random.Random) -> list[Finding]:
        if kind.copied:
            shutil.copytree(kind.copied, "out")
        files = sorted(file for glob in kind.files for file in Path().glob(glob) if file.is_file())
        file, words = rng.choice(files), rng.choice(kind.verbs).replace("OUT", "out").split()
        target = Path("out", file.relative_to(kind.copied)) if kind.copied else file
        before = target.read_bytes()
        mode = target.stat()
        target.unlink()
        try:
            if rng.random() < 0.15:
                put = rng.choice(_INSTEAD)
                how, same = put.__name__.strip("_"), False
                put(target)
            else:
                how, content = damaged(before, rng)
                same = content == before
                target.write_bytes(content)
            found = self._judged(f"{case} {file} {how} {' '.join(words)}", words, kind.known and not same, target)
        finally:
            _remove(target)
            if target.parent.is_dir():
                target.write_bytes(before)
                os.utime(target, ns=(mode.st_atime_ns, mode.st_mtime_ns))
            _remove(Path("out"))
        return found

    def _judged(
        self, case: str, words: Sequence[str], known: bool = False, target: Path | None = None
    ) -> list[Finding]:
        there = _content(self.workshop, but=target)
        began = time.monotonic()
        status, told = call(words, LONGEST, target)
        self.slowest = max(self.slowest, time.monotonic() - began)
        key = status if isinstance(status, int) else -1
        self.statuses[key] = self.statuses.get(key, 0) + 1
        found = [Finding(case, what, detail) for what, detail in _verdict(status, told, known)]
        left = [path for path in Path().rglob("*") if re.search(r"\.unfinished$|\.replaced$|^opened$", path.name)]
        found += [Finding(case, "left behind", str(path)) for path in left]
        copied = target is not None and target.parts[0] == "out"
        if status != 0 and Path("out").exists() and "--out out" in " ".join(words) and not copied:
            found += [Finding(case, "half written", str(path)) for path in Path("out").rglob("*.*") if path.is_file()]
        now = _content(self.workshop, but=target)
        theirs = {path for path in there.keys() | now.keys() if path.split("/")[0] not in _OUTPUTS}
        changed = {path for path in theirs & there.keys() if now.get(path) != there[path]}
        new = theirs - there.keys()
        found += [Finding(case, "changed", path) for path in sorted(changed if "--out {}" in case else changed | new)]
        for path in new:
            _remove(Path(path))
        _remove(Path("out"))
        return found


def call(words: Sequence[str], seconds: float, pipe: Path | None = None) -> tuple[int | BaseException, str]:
    """The command line in this process: its status, or what it raised, and what it said on standard error."""

    def ring(*_: Any) -> None:
        with contextlib.suppress(OSError, TypeError):  # whoever waits for a pipe is let go
            os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))  # pyright: ignore[reportArgumentType]
        raise _Hang

    before = signal.signal(signal.SIGALRM, ring)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            signal.setitimer(signal.ITIMER_REAL, seconds, 5)
            cli.main(list(words))
        except SystemExit as exit_:
            status: int | BaseException = exit_.code if isinstance(exit_.code, int) else 0
        except BaseException as error:
            status = error
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
    return status, err.getvalue()


def _verdict(status: int | BaseException, told: str, known: bool) -> Iterator[tuple[str, str]]:
    if isinstance(status, BaseException):
        name = "hang" if isinstance(status, _Hang) else "exception"
        yield name, f"{type(status).__name__}: {str(status)[:200]} at {_where(status)}"
    elif status == 0 and known:
        yield "taken without a word", told[-200:]
    elif status not in (0, 1, 2):
        yield "status", str(status)
    elif status != 0:
        lines = [line.rpartition("\r")[2] for line in told.split("\n") if line.rpartition("\r")[2].strip()]
        listed = lines[0].startswith("iet-agc: NOT SOUND") if lines else False  # all that differs in a pack
        if not listed and len([line for line in lines if not line.startswith("warning: ")]) != 1:
            yield "lines", " | ".join(line[:200] for line in lines)
        if any(len(line) > LONGEST_LINE for line in lines):
            yield "long", f"{max(map(len, lines))} characters: {lines[-1][:200]}"
        if odd := _PYTHON.search(told):
            yield "python", f"{odd[0]!r} in {told[:400]!r}"


def _where(error: BaseException) -> str:
    trace, place = error.__traceback__, ""
    while trace:
        if "iet_agc" in trace.tb_frame.f_code.co_filename:
            place = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place


def _content(folder: Path, but: Path | None = None) -> dict[str, tuple[int, int]]:
    """Bytes and time of change by path of all regular files below a folder, but for one."""
    files = (Path(root, name) for root, _, names in os.walk(folder) for name in names)
    but = but and (folder / but)
    return {
        str(file.relative_to(folder)): (file.stat().st_size, file.stat().st_mtime_ns)
        for file in files
        if file != but and file.is_file() and not file.is_symlink() and file.name != ".lock"
    }


def _remove(place: Path) -> None:
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)


@contextlib.contextmanager
def bounded_memory() -> Generator[None]:
    """Within it, what reads without end fails before the machine does."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def main() -> int:
    """Run cases and print findings as JSON lines; status 1 where there are any."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=1200)
    asked = parser.parse_args()
    began, count, number = time.monotonic(), 0, asked.first
    with tempfile.TemporaryDirectory() as folder, bounded_memory():
        driver = Driver(Path(folder, "workshop"), asked.seed)
        for number in range(asked.first, asked.first + asked.cases):
            if time.monotonic() - began > asked.seconds:
                break
            for finding in driver.run(number):
                count += 1
                print(json.dumps(finding.__dict__, ensure_ascii=True), flush=True)
    seconds = time.monotonic() - began
    told = f"cases {asked.first} to {number}, {count} findings, {seconds:.0f} s, statuses {driver.statuses}"
    print(f"{told}, slowest {driver.slowest:.1f} s", file=sys.stderr)
    return min(count, 1)


if __name__ == "__main__":
    sys.exit(main())
