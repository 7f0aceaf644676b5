"""Digests of what fixed settings give: a change of structure must leave every one of them as it was.

    python benchmarks/bitwise.py > before.json      # then change the structure
    python benchmarks/bitwise.py > after.json; diff before.json after.json

Everything goes through the command line, so that it runs on any layout of the package. Digests hold for one machine
and one set of libraries only. Minutes on two cores; the text runs need Debian's fonts-noto-color-emoji.
"""

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

SHORT = ("--train.steps", "60", "--run.preview_images", "4", "--run.threads", "1")
ENSEMBLE = ("--method.rounds", "2", "--train.steps", "30", "--run.preview_images", "4", "--run.threads", "1")
TEXT = (*ENSEMBLE, "--train.steps", "4", "--train.batch-size", "4")


def run(*words: str, processes: int = 1) -> None:
    launcher = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}"] if processes > 1 else []
    command = [sys.executable, *launcher, "-m", "iet_agc", *words]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})


def run_and_kill(bundles: Path, *words: str) -> None:
    """Start a training, kill it after its first bundle, and run the same command to the end."""
    started = subprocess.Popen([sys.executable, "-m", "iet_agc", *words], stdout=subprocess.DEVNULL)
    while started.poll() is None and not list(bundles.glob("*/bundle.json")):
        time.sleep(0.02)
    started.send_signal(signal.SIGKILL)
    started.wait()
    run(*words)


def digest_of_arrays(arrays: dict[str, np.ndarray]) -> str:
    found = hashlib.sha256()
    for name in sorted(arrays):
        found.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        found.update(np.ascontiguousarray(arrays[name]).tobytes())
    return found.hexdigest()


def weights(pipeline: Path) -> str:
    files = sorted(pipeline.rglob("*.safetensors"))
    return digest_of_arrays({f"{file.name} {name}": a for file in files for name, a in load_file(file).items()})


def samples(folder: Path) -> str:
    with np.load(folder / "samples.npz") as archive:
        return digest_of_arrays({name: archive[name] for name in archive.files})


def numbers(value: Any, path: str = "") -> dict[str, float]:
    """Every number of an audit by its path; paths, names and words are left out."""
    if isinstance(value, dict):
        return {k: v for name, each in value.items() for k, v in numbers(each, f"{path}.{name}").items()}
    if isinstance(value, list):
        return {k: v for place, each in enumerate(value) for k, v in numbers(each, f"{path}.{place}").items()}
    return {path: value} if isinstance(value, int | float) and not isinstance(value, bool) else {}


def record(out: Path) -> dict[str, Any]:
    cases: dict[str, tuple[tuple[str, ...], int, bool]] = {
        "digits-default": (("digits-default", *SHORT), 1, False),
        "digits-iet-agc": (("digits-iet-agc", *ENSEMBLE), 1, False),
        "digits-iet-agc on two processes": (("digits-iet-agc", *ENSEMBLE), 2, False),
        "digits-iet-agc killed": (("digits-iet-agc", *ENSEMBLE), 1, True),
        "digits-iet-agc by class": (("digits-iet-agc", *ENSEMBLE, "--model.classes", "10"), 1, False),
        "emoji-text-iet-agc": (("emoji-text-iet-agc", "--init", str(out / "pipeline"), *TEXT), 1, False),
        "emoji-text-iet-agc by LoRA": (
            ("emoji-text-iet-agc", "--init", str(out / "pipeline"), *TEXT, "--lora.rank", "2"),
            1,
            False,
        ),
    }
    run("pipeline", "emoji-text-default", "--steps", "3", "--out", str(out / "pipeline"))
    found: dict[str, Any] = {"pipeline": weights(out / "pipeline")}
    for name, (words, processes, killed) in cases.items():
        folder = out / name.replace(" ", "-")
        command = ("train", *words, "--out", str(folder))
        if killed:
            run_and_kill(folder / "bundles", *command)
        else:
            run(*command, processes=processes)
        run("sample", str(folder), "--num-images", "128", "--steps", "5", "--out", str(folder / "samples"))
        found[name] = {"raw": weights(folder / "raw"), "ema": weights(folder / "ema")}
        found[name]["samples"] = samples(folder / "samples")
        found[name]["telemetry"] = hashlib.sha256((folder / "telemetry.csv").read_bytes()).hexdigest()
    for name, more in (
        ("digits-default", ("--flips", "--extractor", "pixels", "--extractor", "efficientnet-lite0")),
        ("emoji-text-iet-agc", ("--extractor", "efficientnet-lite0")),
    ):
        folder = out / name
        run(
            "audit",
            "--train",
            str(folder),
            "--held-out",
            str(folder),
            "--samples",
            str(folder / "samples"),
            *more,
            "--out",
            str(folder / "audit"),
        )
        found[f"audit of {name}"] = numbers(json.loads((folder / "audit" / "audit.json").read_text(encoding="utf-8")))
        for table in ("samples.csv", "training-images.csv"):
            found[f"{table} of {name}"] = hashlib.sha256((folder / "audit" / table).read_bytes()).hexdigest()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="an empty folder that keeps the runs (default: they are thrown away)")
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(record(parser.parse_args().out or Path(folder)), indent=1))


if __name__ == "__main__":
    main()
