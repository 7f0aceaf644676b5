"""Bundles come back bitwise or not at all."""

import ast
import json
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from iet_agc.runtime.files import holds_others, replace_text
from iet_agc.training import checkpoint
from iet_agc.training.checkpoint import BundleError, read_bundle, seal, stage

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
]  # fmt: skip


def _tensors() -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(0)
    tensors = {
        str(dtype): (torch.randn(3, 5, generator=rng) * 50).to(dtype) for dtype in DTYPES if dtype != torch.uint8
    }
    return tensors | {
        "torch.uint8": torch.arange(256).to(torch.uint8),
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 4),
        "special": torch.tensor([float("inf"), -float("inf"), float("nan"), -0.0, 1e-45]),
        "strided": torch.randn(4, 6, generator=rng).T,
    }


def _bits(tensor: Tensor) -> tuple[torch.dtype, tuple[int, ...], bytes]:
    raw = tensor.contiguous().flatten().view(torch.uint8) if tensor.numel() else torch.empty(0)
    return tensor.dtype, tuple(tensor.shape), raw.numpy().tobytes()


def _write(root: Path, name: str = "bundle") -> Path:
    staging = root / ".staging"
    files = stage(staging, {"shared": _tensors(), "member-0000": {"bank": torch.arange(10.0)}})
    seal(staging, root / name, files, {"round": 3, "run": "abc"})
    return root / name


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return _write(tmp_path)


def _change(bundle: Path, **changes: object) -> None:
    file = bundle / "bundle.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_every_dtype_comes_back_bitwise(bundle: Path) -> None:
    opened = read_bundle(bundle)
    expected = _tensors()
    read = opened.tensors("shared")
    assert read.keys() == expected.keys()
    for name, tensor in expected.items():
        assert _bits(read[name]) == _bits(tensor), name
    assert opened.tensors("member-0000")["bank"].tolist() == list(range(10))
    assert opened.about["round"] == 3
    assert opened.about["run"] == "abc"
    assert opened.folder == bundle


def test_a_bundle_holds_its_files_and_nothing_else(bundle: Path) -> None:
    assert sorted(file.name for file in bundle.iterdir()) == [
        "bundle.json",
        "member-0000.safetensors",
        "shared.safetensors",
    ]
    assert not (bundle.parent / ".staging").exists()


def test_a_crash_before_the_rename_leaves_no_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", crash)
        with pytest.raises(KeyboardInterrupt):
            _write(tmp_path)
    assert not (tmp_path / "bundle").exists()
    with pytest.raises(BundleError):
        read_bundle(tmp_path / "bundle")
    read_bundle(_write(tmp_path))  # what the crash left behind is in nobody's way


def test_a_damaged_bundle_of_the_same_name_is_replaced(bundle: Path) -> None:
    (bundle / "shared.safetensors").write_bytes(b"")
    (bundle / "stray").write_text("x")
    read_bundle(_write(bundle.parent))
    assert not (bundle / "stray").exists()


@pytest.mark.parametrize("place", [0, 20, 300, -1])
def test_one_flipped_bit_is_noticed(bundle: Path, place: int) -> None:
    file = bundle / "shared.safetensors"
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)
    with pytest.raises(BundleError, match=r"is damaged: shared.safetensors is not as it was written") as error:
        read_bundle(bundle)
    assert str(bundle) in str(error.value)


def test_a_truncated_or_missing_file_is_noticed(bundle: Path) -> None:
    file = bundle / "member-0000.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(BundleError, match=r"damaged: member-0000.safetensors"):
        read_bundle(bundle)
    file.unlink()
    with pytest.raises(BundleError, match=r"damaged: member-0000.safetensors"):
        read_bundle(bundle)


def test_a_file_of_something_else_is_no_tensors(bundle: Path) -> None:
    (bundle / "shared.safetensors").write_bytes(b"not tensors")
    digest = checkpoint.sha256(bundle / "shared.safetensors")
    _change(bundle, files={"shared.safetensors": digest})
    with pytest.raises(BundleError, match=r"shared.safetensors holds no tensors"):
        read_bundle(bundle)


@pytest.mark.parametrize(
    "content",
    [
        "", "{", "[]", "3", "null", "{}", '{"name": "my-package", "version": 1}',
        '{"format": "iet-agc bundle", "version": 1}',
        '{"format": "iet-agc bundle", "version": 1, "files": []}',
        '{"format": "iet-agc bundle", "version": 1, "files": null}',
    ],
)  # fmt: skip
def test_foreign_json_is_no_bundle(bundle: Path, content: str) -> None:
    (bundle / "bundle.json").write_text(content)
    with pytest.raises(BundleError, match="bundle") as error:
        read_bundle(bundle)
    assert str(bundle) in str(error.value)


def test_a_missing_folder_or_json_is_no_bundle(bundle: Path) -> None:
    (bundle / "bundle.json").unlink()
    for folder in (bundle, bundle.parent / "missing", bundle / "shared.safetensors"):
        with pytest.raises(BundleError, match="is no bundle of iet-agc"):
            read_bundle(folder)


def test_other_formats_and_later_versions_are_refused(bundle: Path) -> None:
    _change(bundle, version=2)
    with pytest.raises(BundleError, match="version 2; this program reads 'iet-agc bundle' version 1"):
        read_bundle(bundle)
    _change(bundle, version=1, format="other bundle")
    with pytest.raises(BundleError, match="is 'other bundle' version 1"):
        read_bundle(bundle)


@pytest.mark.parametrize(
    "name", ["../outside.safetensors", "{root}/outside.safetensors", "sub/../../outside.safetensors", "..", ".", ""]
)
def test_names_that_leave_the_folder_are_refused(bundle: Path, name: str) -> None:
    outside = bundle.parent / "outside.safetensors"
    outside.write_bytes((bundle / "shared.safetensors").read_bytes())
    (bundle / "sub").mkdir()
    name = name.format(root=bundle.parent)
    _change(bundle, files={name: checkpoint.sha256(outside)})
    with pytest.raises(BundleError, match="damaged"):
        read_bundle(bundle)


def test_text_is_replaced_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "state.json"
    replace_text(file, "old")

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", crash)
        with pytest.raises(KeyboardInterrupt):
            replace_text(file, "new")
    assert file.read_text() == "old"
    replace_text(file, "new")
    assert file.read_text() == "new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.json"]


def _loads_weights_only(node: ast.AST) -> bool:
    """A call in which nothing but tensors is unpickled."""
    return isinstance(node, ast.Call) and any(
        keyword.arg == "weights_only" and isinstance(keyword.value, ast.Constant) and keyword.value.value is True
        for keyword in node.keywords
    )


#: TorchScript is a program: the one place that runs it says so, for files that a person names.
_RUNS_PROGRAMS = {"metrics/features.py"}


def _runs_programs(source: str) -> bool:
    """Whether a file that is loaded may run code of its own: TorchScript, or what torch.hub fetches."""
    loads = {"torch.jit.load", "torch.hub.load", "torch.hub.load_state_dict_from_url", "torch.package"}
    names = {ast.unparse(node) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)}
    return bool(names & loads) or "from torch.jit" in source or "from torch.hub" in source


def _unpickles(source: str) -> bool:
    tree = ast.parse(source)
    harmless = {node.func for node in ast.walk(tree) if isinstance(node, ast.Call) and _loads_weights_only(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            if any(name.split(".")[0] in {"pickle", "dill", "joblib", "cloudpickle"} for name in names):
                return True
        if (
            isinstance(node, ast.Attribute)
            and node not in harmless
            and isinstance(node.value, ast.Name)
            and (node.value.id, node.attr) in {("torch", "load"), ("torch", "save")}
        ):
            return True
        if (
            isinstance(node, ast.keyword)
            and node.arg == "allow_pickle"
            and not (isinstance(node.value, ast.Constant) and node.value.value is False)
        ):
            return True
    return False


def test_nothing_in_the_package_unpickles() -> None:
    package = Path(checkpoint.__file__).parent
    for file in package.rglob("*.py"):
        assert not _unpickles(file.read_text()), file
        assert _runs_programs(file.read_text()) == (str(file.relative_to(package)) in _RUNS_PROGRAMS), file
    for bad in (
        "import pickle",
        "from pickle import loads",
        "import torch\ntorch.load('x')",
        "import torch\ntorch.load('x', weights_only=False)",
        "np.load(f, allow_pickle=True)",
    ):
        assert _unpickles(bad)  # the check can fail


def test_what_a_kill_leaves_of_our_own_files_is_ours(tmp_path: Path) -> None:
    assert not holds_others(tmp_path / "missing", {"a"})
    for name in ("a", ".a.unfinished", ".b.unfinished"):
        (tmp_path / name).write_text("")
    assert not holds_others(tmp_path, {"a", "b"})
    (tmp_path / "c").write_text("")
    assert holds_others(tmp_path, {"a", "b"})
