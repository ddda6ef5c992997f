"""launch/licences.py: what may be depended on, and that every dependency is bounded."""

import runpy
import subprocess
import sys
import tomllib
from email.message import Message

import pytest
from packaging.requirements import Requirement
from places import ROOT

SCRIPT = ROOT / "launch" / "licences.py"
licences = runpy.run_path(str(SCRIPT))
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]


def requirements():
  optional = PROJECT["optional-dependencies"].values()
  texts = {*PROJECT["dependencies"], *PYPROJECT["build-system"]["requires"], *sum(optional, [])}
  return [text for text in sorted(texts) if Requirement(text).name != PROJECT["name"]]


@pytest.mark.parametrize("text", requirements())
def test_every_requirement_has_bounds(text):
  operators = {specifier.operator for specifier in Requirement(text).specifier}
  assert operators & {"<", "<=", "==", "~="}, f"{text}: no upper bound"
  assert operators & {">", ">=", "==", "~="}, f"{text}: no lower bound"


@pytest.mark.parametrize(
  ("expression", "verdict"),
  [
    ("MIT", ""),
    ("MIT OR GPL-3.0-only", ""),
    ("BSD-3-Clause AND MPL-2.0", "told"),
    ("LGPL-3.0-or-later", "told"),
    ("MIT AND GPL-2.0-only", "refused"),
    ("AGPL-3.0-or-later", "refused"),
    ("GNU General Public License v3 (GPLv3)", "refused"),
    ("MIT AND Something", "unknown"),
    ("", "unknown"),
    ("GPL-2.0-only AND (Zlib OR MIT OR ISC)", "refused"),
    ("Something AND (Zlib OR MIT OR ISC)", "unknown"),
    ("MIT WITH Something", "unknown"),
  ],
)
def test_verdicts(expression, verdict):
  assert licences["judged"](expression) == verdict


@pytest.mark.parametrize(
  ("fields", "licence"),
  [
    ({"License-Expression": "MIT OR Apache-2.0", "License": "GPL"}, "MIT OR Apache-2.0"),
    ({"License": "Apache 2.0"}, "Apache-2.0"),
    ({"License": "MIT License\n\nPermission is hereby ..."}, "MIT"),
    ({"Classifier": "License :: OSI Approved :: BSD License"}, "BSD-3-Clause"),
    ({"Classifier": "License :: OSI Approved", "License": "ISC"}, "ISC"),
    ({"Classifier": "License :: OSI Approved :: MIT License", "License": "MPL-2.0 AND MIT"}, None),
    ({}, ""),
  ],
)
def test_what_metadata_say(fields, licence):
  metadata = Message()
  for name, value in fields.items():
    metadata[name] = value
  assert licences["licence_of"](metadata) == (fields["License"] if licence is None else licence)


def test_the_walk_goes_through_extras_and_markers(tmp_path):
  project = {
    "name": "Made.Up",
    "dependencies": ["pytest", "absent-of-another-system; sys_platform == 'nowhere'"],
    "optional-dependencies": {"one": ["made-up[two]"], "two": ["no-such-distribution>=1"]},
  }
  found = {row.name: row for row in licences["rows"](project, ["one"])}
  assert {"pytest", "pluggy", "no-such-distribution"} <= found.keys()
  assert not {"Made.Up", "made-up", "absent-of-another-system"} & found.keys()
  assert found["pluggy"].extras[0] == "" and found["pluggy"].licence == "MIT"
  assert found["no-such-distribution"].extras == ("one",)
  assert licences["wrong"](found.values()) == []
  project["dependencies"].append("no-such-distribution")
  (complaint,) = licences["wrong"](licences["rows"](project, []))
  assert complaint.startswith("no-such-distribution: not installed")


@pytest.mark.parametrize(("said", "verdict"), [("MIT", ""), ("Odd", "reviewed"), ("", "unknown")])
def test_what_a_person_read_counts_while_the_metadata_stay(said, verdict, monkeypatch):
  metadata = Message()
  metadata["Name"], metadata["Version"], metadata["License"] = "made-up", "1", said
  monkeypatch.setattr("importlib.metadata.metadata", lambda name: metadata)
  monkeypatch.setitem(licences["REVIEWED"], "made-up", ("Odd", "MIT", "read"))
  assert licences["_row"]("made-up", ("",)).verdict == verdict


def test_nothing_here_is_under_a_licence_that_does_not_fit():
  done = subprocess.run(
    [sys.executable, str(SCRIPT)], capture_output=True, text=True, cwd=ROOT, check=False
  )
  assert done.returncode == 0, done.stderr
  assert {"numpy", "jax", "flax"} <= {line.split(" ")[0] for line in done.stdout.splitlines()}
