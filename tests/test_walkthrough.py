"""The notebook of the examples: it runs from the first cell to the last, and what is stored of it is small."""

import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[1] / "examples" / "walkthrough.ipynb"


def cells(kind: str) -> list[dict[str, Any]]:
    content = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return [cell for cell in content["cells"] if cell["cell_type"] == kind]


def test_what_is_stored_is_small_and_names_no_machine() -> None:
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert len(text) < 150_000
    assert not any(word in text for word in ("/home/", "/root/", "/tmp/", "Traceback", '"stderr"'))


def test_every_code_cell_was_run_in_order() -> None:
    assert [cell["execution_count"] for cell in cells("code")] == [*range(1, len(cells("code")) + 1)]


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path) -> None:
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    trained = '"method.rounds": 4, "train.steps": 32'
    (training,) = (cell for cell in notebook.cells if trained in cell.source)
    training.source = training.source.replace(trained, '"method.rounds": 2, "train.steps": 4')  # of seconds
    nbclient.NotebookClient(notebook, timeout=500, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = ["".join(map(str, cell.outputs)) for cell in notebook.cells if cell.cell_type == "code"]
    assert "No copying beyond chance shown" in "".join(outputs)
    assert "Copies found" in "".join(outputs)
    assert "check failed" in "".join(outputs)
    assert "False" in outputs[-4]
    assert (tmp_path / "runs" / "walkthrough" / "report.html").is_file()
