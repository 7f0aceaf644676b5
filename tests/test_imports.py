"""What is heavy loads where it is used: a process for each public import and for verbs says what it has loaded."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pytest

#: Each takes a good part of a second, or seconds.
HEAVY = {
    "diffusers", "matplotlib", "numpy", "pydantic", "scipy.stats", "sklearn", "torch", "torch._dynamo",
    "torch.utils.tensorboard", "torch_fidelity", "torchmetrics", "torchvision", "transformers",
}  # fmt: skip

#: What a statement may load of them.
ALLOWED = {
    "import iet_agc": set(),
    "import iet_agc; iet_agc.__version__": set(),
    "import iet_agc; iet_agc.train, iet_agc.sample, iet_agc.audit, iet_agc.report, iet_agc.Run": set(),
    "import iet_agc; iet_agc.card, iet_agc.bench, iet_agc.shards, iet_agc.average": set(),
    "import iet_agc.metrics": set(),
    "import iet_agc.cli": set(),
    "import iet_agc.cli.summary": set(),
    "from iet_agc import AntiGradientControl": {"numpy", "torch"},
    "from iet_agc import mean_of_kept": {"numpy", "torch"},
    "from iet_agc import partition": {"numpy", "torch"},
    "from iet_agc import average_states": {"numpy", "torch"},
    "from iet_agc.metrics import nearest": {"numpy", "torch"},
    "from iet_agc.metrics import CUTS, distance_ratio, memorization_quantity": {"numpy", "pydantic", "torch"},
    "import iet_agc.metrics.quality, iet_agc.metrics.features": {"numpy", "pydantic", "torch"},
    "from iet_agc.metrics.intervals import share": {"numpy", "pydantic"},
    "import iet_agc.sampling.sample_set": {"numpy", "pydantic", "torch"},
    "import iet_agc.auditing.run": {"numpy", "pydantic", "torch"},
    "import iet_agc.reporting.audit_page": {"matplotlib", "numpy", "pydantic"},
    "import iet_agc.reporting.comparison_page": {"matplotlib", "numpy", "pydantic"},
    "import iet_agc.reporting.board_page": {"matplotlib", "numpy", "pydantic"},
    "import iet_agc.config.board": {"pydantic"},
}

#: What a verb may load to say what it has to say. Folders that are not there are looked for before anything is made.
VERBS: dict[tuple[str, ...], set[str]] = {
    ("--help",): set(),
    ("audit", "--help"): set(),
    ("presets",): {"pydantic"},
    ("train", "digits-iet-agc", "--help"): {"pydantic"},
    ("train", "digits-iet-agc", "--out", "x", "--train.steps", "many"): {"pydantic"},
    (): set(),
    ("--version",): set(),
    ("trian",): set(),
    ("completion", "bash"): {"pydantic"},
    ("report", "missing"): set(),
    ("compare", "missing"): set(),
    ("card", "missing"): {"pydantic"},
    ("bench", "missing", "--out", "x"): {"pydantic"},
    ("audit", "--train", "missing", "--samples", "missing", "--out", "x"): {"pydantic"},
    ("audit", "--train", "digits", "--samples", "missing.npz", "--out", "x"): {"pydantic"},
    ("init", "missing"): set(),
    ("shards", "missing", "--members", "2", "--out", "x"): set(),
    ("average", "missing", "--out", "x"): set(),
    ("sample", "missing", "--out", "x"): {"pydantic"},
    ("detect", "missing", "--prompt", "cat", "--out", "x"): {"pydantic"},
    ("train", "digits-default", "--init", "no where", "--out", "x"): {"pydantic"},
    (
        "train",
        "digits-iet",
        "--out",
        "x",
        "--data.name",
        "folder",
        "--data.root",
        "missing",
        "--data.planted_images",
        "0",
    ): {"pydantic"},
}


#: Imports what all of the statements may load, and then forks for each of them.
PROGRAM = """
import os, sys
for name in {allowed}:
    __import__(name)
for number, statement in enumerate({statements}):
    if os.fork() == 0:
        try:
            exec(statement)
        except SystemExit:
            pass
        print(f"\\nloaded {{number}}", *sys.modules, flush=True)
        os._exit(0)
    assert os.wait()[1] == 0
"""


def loaded(statements: Sequence[str], folder: Path, allowed: Iterable[str] = ()) -> list[set[str]]:
    """Which of the heavy modules a process has when it has run each statement, if it has the allowed ones before."""
    program = PROGRAM.format(allowed=sorted(allowed), statements=[*statements])
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=folder, capture_output=True, text=True, check=True
    )
    found = [{*line.split()} for line in done.stdout.splitlines() if line.startswith("loaded ")]
    assert len(found) == len(statements)
    return [HEAVY & modules for modules in found]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], set[str]]:
    """What a statement of the tables loads; those that may load the same share a process, made for the first one."""
    folder, known = tmp_path_factory.mktemp("empty"), dict[str, set[str]]()

    def look(statement: str) -> set[str]:
        if statement not in known:
            alike = [each for each, allowed in STATEMENTS.items() if allowed == STATEMENTS[statement]]
            known.update(zip(alike, loaded(alike, folder, STATEMENTS[statement]), strict=True))
        return known[statement]

    return look


def command(words: tuple[str, ...]) -> str:
    return f"import iet_agc.cli; iet_agc.cli.main({[*words]})"


STATEMENTS = ALLOWED | {command(words): allowed for words, allowed in VERBS.items()}


@pytest.mark.parametrize("statement", ALLOWED)
def test_imports_load_what_they_need(statement: str, found: Callable[[str], set[str]]) -> None:
    assert found(statement) <= ALLOWED[statement]


@pytest.mark.parametrize("words", VERBS, ids=" ".join)
def test_verbs_load_what_they_need(words: tuple[str, ...], found: Callable[[str], set[str]]) -> None:
    assert found(command(words)) <= VERBS[words]


def test_the_proof_can_fail(tmp_path: Path) -> None:
    statement = "import iet_agc.cli, scipy.stats; iet_agc.cli.main(['presets'])"
    of_torch, of_statistics = loaded(["import torch", statement], tmp_path)
    assert of_torch == {"numpy", "torch"}
    assert "scipy.stats" in of_statistics
    of_torchvision, of_nothing = loaded(["import torchvision", "pass"], tmp_path, {"torch"})
    assert "torchvision" in of_torchvision
    assert of_nothing == {"numpy", "torch"}


def test_lazy_names_are_listed_and_others_refused() -> None:
    import iet_agc
    from iet_agc import metrics

    assert {*iet_agc.__all__} <= {*dir(iet_agc)}
    assert {*metrics.__all__} <= {*dir(metrics)}
    for module in (iet_agc, metrics):
        with pytest.raises(AttributeError, match="has no attribute 'none'"):
            module.none  # noqa: B018
