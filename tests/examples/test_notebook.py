"""The notebook is kept without outputs, and runs from its first cell to its last."""

import json
import pathlib
import shutil

import pytest

ROOT = pathlib.Path(__file__).parents[2]
NOTEBOOK = ROOT / "examples" / "membrane.ipynb"


def test_holds_no_outputs():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert code
    assert not [cell for cell in code if cell["outputs"] or cell["execution_count"]]


@pytest.mark.slow
def test_trains_shows_and_predicts(tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat", reason="the extra `notebook` is not installed")
    preprocessors = pytest.importorskip("nbconvert.preprocessors")
    (tmp_path / "examples").mkdir()
    shutil.copy(ROOT / "train_loop.py", tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    # An error in a cell is raised here; that of a program started by ! shows in what it has left.
    execute = preprocessors.ExecutePreprocessor(timeout=600, kernel_name="python3")
    execute.preprocess(notebook, {"metadata": {"path": str(tmp_path / "examples")}})
    scores = json.loads((tmp_path / "runs" / "notebook" / "scores.json").read_text())
    assert scores["step"] == 120
    # Better than the best threshold of the grey values, which is chosen with the truth known.
    baseline = scores["best_threshold"]["membrane"]["dice"]
    assert scores["scores"]["dice/membrane"] > baseline
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    pictures = [output for output in shown if "image/png" in output.get("data", {})]
    # Image and mask; errors and curves; the prediction.
    assert len(pictures) == 5
