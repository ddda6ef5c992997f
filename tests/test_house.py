"""The rules of the house: who imports whom, what is documented, what is formatted."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "boxseg_jax"

# Floors from the ground up; a file imports from lower floors and from its own room only.
FLOORS = {
  "errors": -2,  # the ground
  "files": -1,
  "batch": 0,
  "config": 0,
  "parallel": 0,
  "augment": 1,
  "models": 1,
  "losses": 2,
  "data": 2,
  "evaluation": 3,
  "training": 4,
  "apps": 5,
  "main": 6,
}
# ConfigDict stops here; below, functions take plain keyword arguments.
KNOW_CONFIG = {"config", "main", "data", "training", "apps"}
# Of the training room, these are pure and stay free of it.
PURE = {"step.py", "state.py", "optimizer.py"}

FILES = sorted(PACKAGE.rglob("*.py"))


def room(path):
  relative = path.relative_to(PACKAGE)
  return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imported_modules(path):
  """(module, whether at the top level) of every import in a file."""
  tree = ast.parse(path.read_text())
  top = set(map(id, tree.body))
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      # `from boxseg_jax import data` names a room, `from x.y import z` the module x.y.
      whole = node.module == "boxseg_jax"
      names = [f"boxseg_jax.{a.name}" for a in node.names] if whole else [node.module]
    else:
      continue
    for name in names:
      yield name, id(node) in top


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path):
  own = room(path)
  if own == "__init__":
    return
  for name, _ in imported_modules(path):
    if not name.startswith("boxseg_jax.") or name == "boxseg_jax.__version__":
      continue
    other = name.split(".")[1]
    assert other == own or FLOORS[other] < FLOORS[own], f"{own} imports {other}"


def test_every_room_has_a_floor():
  assert {room(path) for path in FILES} - {"__init__"} == set(FLOORS)


def test_no_import_circles():
  graph = {}
  for path in FILES:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    graph[name] = {m for m, top in imported_modules(path) if top and m.startswith("boxseg_jax")}
  done, trail = set(), []

  def visit(name):
    assert name not in trail, f"circle: {trail[trail.index(name) :] + [name]}"
    if name in done or name not in graph:
      return
    trail.append(name)
    for other in sorted(graph[name] - {name}):
      visit(other)
    trail.pop()
    done.add(name)

  for name in sorted(graph):
    visit(name)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_tensorflow_stays_in_the_data_room(path):
  """But for the one function that writes a SavedModel."""
  allowed = room(path) == "data" or path == PACKAGE / "apps" / "programs.py"
  for name, top in imported_modules(path):
    if name.split(".")[0] in ("tensorflow", "tensorflow_datasets"):
      assert allowed and not top, f"{path} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_config_dict_stays_on_the_upper_floors(path):
  modules = {name.split(".")[0] for name, _ in imported_modules(path)}
  if "ml_collections" in modules:
    assert room(path) in KNOW_CONFIG and path.name not in PURE


def test_everything_imports_without_tensorflow():
  names = [".".join(p.relative_to(ROOT).with_suffix("").parts) for p in FILES]
  code = (
    "import sys, importlib\n"
    "sys.modules['tensorflow'] = None\n"
    "sys.modules['tensorflow_datasets'] = None\n"
    f"for name in {names!r}: importlib.import_module(name.removesuffix('.__init__'))\n"
    "print('imported')"
  )
  done = subprocess.run(
    [sys.executable, "-c", code],
    capture_output=True,
    text=True,
    cwd=ROOT,
    env={**os.environ, "JAX_PLATFORMS": "cpu"},
    check=False,
  )
  assert done.stdout.strip() == "imported", done.stderr


def public_functions():
  for path in FILES:
    for node in ast.parse(path.read_text()).body:
      if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
        yield pytest.param(path, node, id=f"{path.relative_to(PACKAGE)}:{node.name}")


@pytest.mark.parametrize(("path", "node"), public_functions())
def test_public_names_are_documented(path, node):
  doc = ast.get_docstring(node)
  assert doc, f"{path}: {node.name}"
  if isinstance(node, ast.FunctionDef) and "\n" in doc:
    arguments = [a.arg for a in (*node.args.args, *node.args.kwonlyargs)]
    if "Args:" in doc:
      missing = [name for name in arguments if f"{name}:" not in doc and f"{name} " not in doc]
      assert not missing, f"{path}: {node.name} does not tell of {missing}"


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]], ids=lambda c: c[0])
def test_ruff(command):
  done = subprocess.run(
    [sys.executable, "-m", "ruff", *command, "--quiet", str(ROOT)],
    capture_output=True,
    text=True,
    cwd=ROOT,
    check=False,
  )
  assert done.returncode == 0, done.stdout + done.stderr


def test_types():
  """Of the whole package, as `[tool.mypy]` in pyproject.toml says."""
  pytest.importorskip("mypy")
  done = subprocess.run(
    [sys.executable, "-m", "mypy"], capture_output=True, text=True, cwd=ROOT, check=False
  )
  assert done.returncode == 0, done.stdout + done.stderr
  assert f"no issues found in {len(FILES)} source files" in done.stdout


def test_what_the_type_checker_lets_pass_is_explained():
  """An ignored line names the kind of error and says why."""
  for path in FILES:
    for line in path.read_text().splitlines():
      if "type: ignore" in line:
        assert re.search(r"# type: ignore\[[a-z-]+\]  # \S", line), f"{path}: {line}"
