"""The notebooks: what is shown is what is written, and all of it runs, on small data."""

import json
import os

import pytest
from places import ROOT

jupytext = pytest.importorskip("jupytext")
nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")

FOLDER = ROOT / "launch" / "notebooks"
# What the cell tagged "parameters" is overruled by.
SMALL = {
  "method": {"STEPS": 4},
  "quickstart": {"STEPS": 4, "DATASET": "shapes"},
  "your_data": {"STEPS": 4, "EXAMPLE_IMAGES": 30, "LONGER_SIDE": 48},
}


def test_every_notebook_is_tested():
  assert {path.stem for path in FOLDER.glob("*.py")} == set(SMALL)
  assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(SMALL)


@pytest.mark.parametrize("name", SMALL)
def test_text_and_notebook_are_a_pair(name):
  text = jupytext.read(FOLDER / f"{name}.py")
  notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
  assert [(c.cell_type, c.source) for c in text.cells] == [
    (c.cell_type, c.source) for c in notebook.cells
  ]
  nbformat.validate(notebook)


@pytest.mark.parametrize("name", SMALL)
def test_outputs_are_there_when_it_is_opened(name):
  notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
  outputs = [output for c in notebook.cells if c.cell_type == "code" for output in c.outputs]
  assert sum("image/png" in output.get("data", {}) for output in outputs) >= 2
  assert not [output for output in outputs if output.output_type == "error"]
  assert "Traceback" not in str(outputs) and str(ROOT) not in str(outputs)


@pytest.mark.parametrize("name", SMALL)
def test_all_of_it_runs(name, tmp_path, monkeypatch):
  # Kernels start in the folder of the notebook's reader, and find the package from there.
  monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
  monkeypatch.setenv("XLA_FLAGS", "")  # one device is enough
  notebook = jupytext.read(FOLDER / f"{name}.py")
  place = next(
    number
    for number, cell in enumerate(notebook.cells)
    if "parameters" in cell.metadata.get("tags", [])
  )
  small = SMALL[name] | {"WORKDIR": str(tmp_path / "run")}
  lines = "\n".join(f"{key} = {value!r}" for key, value in small.items())
  notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(lines))
  nbclient.NotebookClient(
    notebook, timeout=1800, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
  ).execute()
  code = [cell for cell in notebook.cells if cell.cell_type == "code"]
  assert all(cell.execution_count for cell in code)
  outputs = [output for cell in code for output in cell.outputs]
  assert not [output for output in outputs if output.output_type == "error"]
  assert sum("image/png" in output.get("data", {}) for output in outputs) >= 2
  assert "foreground_iou" in json.loads((tmp_path / "run" / "result.json").read_text())
  if name == "your_data":
    every_box_has_a_mask(tmp_path / "run")


def every_box_has_a_mask(run):
  """What was given comes back as it was, with a mask where there was none."""
  given, labelled = (
    json.loads((run / folder / "instances.json").read_text())
    for folder in ("example", "data/labelled")
  )
  made = {one["id"]: one for one in labelled["annotations"]}
  assert len(made) == len(given["annotations"]) == len(labelled["annotations"])
  new = {one["id"] for one in given["annotations"] if not one["segmentation"]}
  assert 0 < len(new) < len(made)
  for one in given["annotations"]:
    if one["id"] in new:
      assert made[one["id"]]["segmentation"] and 0 <= made[one["id"]]["score"] <= 1
      one = one | {key: made[one["id"]][key] for key in ("segmentation", "score")}
    assert made[one["id"]] == one
  assert (run / "model.safetensors").exists() and (run / "model.stablehlo").exists()
