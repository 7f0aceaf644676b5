"""Who may import whom: the table of docs/architecture.md, held against every module with `ast`."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import iet_agc
from tests.conftest import SLOW

PACKAGE = Path(iet_agc.__file__).parent
DOCUMENT = Path(__file__).parents[1] / "docs" / "architecture.md"

#: Who may name `torch.distributed`.
DISTRIBUTED = {"runtime.distributed"}
#: Who must not import torch, not even through another module.
TORCHLESS = [
    "iet_agc",
    "iet_agc.cli",
    "iet_agc.cli.bench",
    "iet_agc.cli.completion",
    "iet_agc.cli.paths",
    "iet_agc.cli.presentation",
    "iet_agc.cli.summary",
    "iet_agc.cli.train_help",
    "iet_agc.metrics.attacks",
    "iet_agc.metrics.curve",
    "iet_agc.metrics.frontier",
    "iet_agc.metrics.gate",
    "iet_agc.metrics.membership",
    "iet_agc.metrics.records",
    "iet_agc.metrics.soundness",
    "iet_agc.auditing.finished",
    "iet_agc.auditing.verdict",
    "iet_agc.auditing.schema",
    "iet_agc.config.board",
    "iet_agc.config.overrides",
    "iet_agc.config.presets",
    "iet_agc.config.run_folder",
    "iet_agc.config.settings",
    "iet_agc.metrics.intervals",
    "iet_agc.reporting.audit_page",
    "iet_agc.reporting.board",
    "iet_agc.reporting.board_page",
    "iet_agc.reporting.comparison",
    "iet_agc.reporting.comparison_page",
    "iet_agc.reporting.duplicates_page",
]
#: What numbers must not know: folders, processes, what a run is.
BEHIND_A_WALL = {
    "auditing.compute": (
        "runtime.distributed",
        "runtime.torchrun",
        "runtime.parts",
        "config",
        "sampling",
        "auditing.run",
        "auditing.sources",
    )
}
#: At the top of the package, files and folders, beside the marker for type checkers.
MOST_ENTRIES = 15

#: What the command line may import at its top: it takes no time.
_LIGHT = {"__init__", "runtime.errors", "runtime.silence", "runtime.streams", "runtime.torchrun"}


def _table() -> dict[str, tuple[set[str], set[str]]]:
    """package or module: (packages and modules of ours that it may import, libraries)."""
    rows = re.findall(
        r"^\| `([\w.]+)` \| [^|]* \| ([\w. ]*)\| ([\w. ]*)\|$", DOCUMENT.read_text(encoding="utf-8"), re.M
    )
    return {name: (set(ours.split()), set(libraries.split())) for name, ours, libraries in rows}


TABLE = _table()


def _module_name(file: Path) -> str:
    name = ".".join(file.relative_to(PACKAGE).with_suffix("").parts)
    return name.removesuffix(".__init__") or name


def _files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


MODULES = {_module_name(file) for file in _files()}


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


def _own(name: str) -> str:
    """The module of the package that an import names: "iet_agc.method.agc.AntiGradientControl" is "method.agc"."""
    rest = name.removeprefix("iet_agc").removeprefix(".")
    while rest and rest not in MODULES:
        rest = rest.rpartition(".")[0]
    return rest or f"__init__ ({name})"


def _row(module: str) -> str:
    """The row of the table that a module follows: its own, or that of its package."""
    while module and module not in TABLE:
        module = module.rpartition(".")[0]
    return module


def _allowed(target: str, module: str, ours: set[str]) -> bool:
    """Whether a module may import another: one of the same row, or one that the row names, alone or by its package."""
    if _row(target) == _row(module):
        return True
    parts = target.split(".")
    return any(".".join(parts[:length]) in ours for length in range(1, len(parts) + 1))


def _broken(module: str, source: str) -> list[str]:
    """The rules that a module breaks, in words."""
    if not _row(module):
        return [f"{module} is not in the table of {DOCUMENT.name}: say what it may import"]
    ours, libraries = TABLE[_row(module)]
    tree, broken = ast.parse(source), []
    for name in _imports(tree):
        root = name.split(".")[0]
        if root == "iet_agc":
            target = _own(name)
            if not _allowed(target, module, ours):
                broken.append(f"{module} imports {target}")
            if any(f"{target}.".startswith(f"{wall}.") for wall in BEHIND_A_WALL.get(module, ())):
                broken.append(f"{module} looks over the wall at {target}")
        elif root not in sys.stdlib_module_names and root not in libraries:
            broken.append(f"{module} imports {root}")
        if name.startswith("torch.distributed") and module not in DISTRIBUTED:
            broken.append(f"{module} imports torch.distributed")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.distributed" and module not in DISTRIBUTED:
            broken.append(f"{module} uses torch.distributed")
    if module == "cli":
        outside = [name for name in _top_level(tree) if _own(name) not in _LIGHT]
        broken += [f"cli imports {name} outside of a verb" for name in outside if name.startswith("iet_agc")]
    elif module == "cli.demo" and any(re.fullmatch(r"iet_agc\.cli(\.main)?", name) for name in _imports(tree)):
        broken.append("cli.demo imports cli")
    return broken


def _top_level(tree: ast.Module) -> Iterator[str]:
    """Imports that run when the module is imported: in no function, and not for the type checker alone."""
    todo: list[ast.AST] = [tree]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from _imports(ast.Module([node], []))
        todo.extend(ast.iter_child_nodes(node))


@pytest.mark.parametrize("file", _files(), ids=_module_name)
def test_every_module_keeps_the_table(file: Path) -> None:
    assert _broken(_module_name(file), file.read_text(encoding="utf-8")) == []


def test_all_modules_are_read_and_every_row_is_somebodys() -> None:
    assert {"method.agc", "training.loop", "metrics", "metrics.neighbors", "__init__"} <= MODULES
    assert {_row(module) for module in MODULES} == set(TABLE)


def test_the_table_has_no_circle() -> None:
    """Of packages; a row of one module counts for itself, and importing a part of a package is importing it."""
    known = {name: {_row(ours) for ours in imports} for name, (imports, _) in TABLE.items()}
    assert len(tuple(TopologicalSorter(known).static_order())) == len(TABLE)


def test_modules_import_in_no_circle() -> None:
    graph = {}
    for file in _files():
        own = {
            _own(name) for name in _imports(ast.parse(file.read_text(encoding="utf-8"))) if name.startswith("iet_agc.")
        }
        graph[_module_name(file)] = own - {_module_name(file)}
    assert len(tuple(TopologicalSorter(graph).static_order())) >= len(MODULES)


def test_the_top_of_the_package_is_seen_at_a_glance() -> None:
    entries = [entry for entry in PACKAGE.iterdir() if entry.name not in {"__pycache__", "py.typed"}]
    assert len(entries) <= MOST_ENTRIES


@pytest.mark.parametrize(
    ("module", "source", "expected"),
    [
        ("method.agc", "import diffusers", "method.agc imports diffusers"),
        (
            "method.agc",
            "def f():\n    from iet_agc.config.settings import Settings",
            "method.agc imports config.settings",
        ),
        ("runtime.seeds", "import sklearn", "runtime.seeds imports sklearn"),
        ("diffusion.samplers", "from iet_agc.method.agc import A", "diffusion.samplers imports method.agc"),
        ("diffusion.samplers", "from iet_agc import A", "diffusion.samplers imports __init__ (iet_agc.A)"),
        ("metrics.neighbors", "from iet_agc.data.image_set import I", "metrics.neighbors imports data.image_set"),
        ("training.loop", "from iet_agc.metrics import nearest", "training.loop imports metrics"),
        ("training.loop", "import iet_agc.reporting.audit_page", "training.loop imports reporting.audit_page"),
        ("auditing.compute", "from iet_agc.training.loop import train", "auditing.compute imports training.loop"),
        (
            "auditing.compute",
            "from iet_agc.auditing.run import x",
            "auditing.compute looks over the wall at auditing.run",
        ),
        ("auditing.run", "from iet_agc.diffusion.unet import x", "auditing.run imports diffusion.unet"),
        ("reporting.reader", "from iet_agc.metrics.quality import x", "reporting.reader imports metrics.quality"),
        ("reporting.reader", "from iet_agc.auditing.compute import x", "reporting.reader imports auditing.compute"),
        ("auditing.schema", "from iet_agc.auditing.compute import x", "auditing.schema imports auditing.compute"),
        ("metrics.records", "from iet_agc.auditing.schema import x", "metrics.records imports auditing.schema"),
        ("config.settings", "import torch", "config.settings imports torch"),
        ("reporting.audit_page", "from torch import Tensor", "reporting.audit_page imports torch"),
        ("training.loop", "import torch.distributed as dist", "training.loop imports torch.distributed"),
        ("training.loop", "from torch import distributed", "training.loop imports torch.distributed"),
        ("training.loop", "import torch\ntorch.distributed.barrier()", "training.loop uses torch.distributed"),
        ("cli", "from iet_agc.training.loop import x", "cli imports iet_agc.training.loop.x outside of a verb"),
        ("cli", "if True:\n    import iet_agc.data", "cli imports iet_agc.data outside of a verb"),
        ("cli", "def verb():\n    import sklearn", "cli imports sklearn"),
        ("cli.demo", "def f():\n    from iet_agc.cli import main", "cli.demo imports cli"),
        ("method.agc", "from . import seeds", "method.agc imports __init__ (iet_agc.<relative import>)"),
        ("utils", "", "utils is not in the table of architecture.md: say what it may import"),
    ],
)
def test_the_check_can_fail(module: str, source: str, expected: str) -> None:
    assert expected in _broken(module, source)


def test_the_check_can_pass() -> None:
    assert _broken("cli", "import json\ndef verb():\n    from iet_agc.training.loop import train") == []
    assert _broken("runtime.distributed", "import torch.distributed as dist") == []
    assert _broken("training.loop", "from iet_agc.training import checkpoint\nfrom iet_agc.runtime import files") == []
    assert _broken("reporting.reader", "from iet_agc.metrics.intervals import share") == []


def _loaded_by(modules: list[str]) -> list[str]:
    """Which of the heavy libraries a fresh process has after importing some modules."""
    heavy = "'torch', 'diffusers', 'sklearn'"
    program = f"import sys, {', '.join(modules)}; print(*[name for name in ({heavy}) if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout.split()


def test_what_imports_no_torch() -> None:
    assert _loaded_by(TORCHLESS) == []


@pytest.mark.slow
def test_that_proof_can_fail() -> None:
    assert _loaded_by(["iet_agc.runtime.seeds"]) == ["torch"]


def test_files_that_are_slow_are_there_and_no_test_file_imports_another() -> None:
    files = {file.stem: file.read_text(encoding="utf-8") for file in Path(__file__).parent.glob("*.py")}
    assert {*files} >= SLOW
    assert [name for name, source in files.items() if "from tests" + ".test_" in source] == []
