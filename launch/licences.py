"""Lists what boxseg_jax depends on, with versions and licences; refuses what it may not depend on.

    python launch/licences.py                 # every extra
    python launch/licences.py --extras hub    # the package and these extras

Walks the requirements in pyproject.toml through what is installed. A licence is
taken from the metadata: the SPDX expression, else the classifiers, else the text. boxseg_jax is
under Apache-2.0, and imports: permissive licences are fine; those that ask for their own files'
changes alone (MPL, LGPL) are told; GPL, AGPL, unknown and unread ones end with exit status 1. What
metadata leave open was read by a person and is listed below, with what was found, for as long as
the metadata say the same. Requirements that are not installed are named, and are an error where
the package itself needs them.
"""

import argparse
import importlib.metadata
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"
PERMISSIVE = {
  "0BSD",
  "Apache-2.0",
  "BSD-2-Clause",
  "BSD-3-Clause",
  "BSL-1.0",
  "CC0-1.0",
  "HPND",
  "ISC",
  "MIT",
  "MIT-CMU",
  "PSF-2.0",
  "Python-2.0",
  "Unlicense",
  "Zlib",
}
# Of use unchanged by an Apache-2.0 project, and of interest to who ships copies of them.
TOLD = {"MPL-2.0", "LGPL-2.1-only", "LGPL-2.1-or-later", "LGPL-3.0-only", "LGPL-3.0-or-later"}
_COPYLEFT = re.compile(r"\b(A?GPL|GNU (Affero )?General Public|SSPL|EUPL|CC-BY-NC)", re.IGNORECASE)
# How classifiers and license fields spell it.
_SPELT = {
  "3-clause bsd license": "BSD-3-Clause",
  "academic free license (afl)": "AFL-3.0",
  "apache 2.0": "Apache-2.0",
  "apache license": "Apache-2.0",
  "apache license 2.0": "Apache-2.0",
  "apache license, version 2.0": "Apache-2.0",
  "apache software license": "Apache-2.0",
  "bsd": "BSD-3-Clause",
  "bsd 3-clause": "BSD-3-Clause",
  "bsd license": "BSD-3-Clause",
  "freebsd": "BSD-2-Clause",
  "isc license (iscl)": "ISC",
  "mit license": "MIT",
  "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
  "python software foundation license": "PSF-2.0",
  "the unlicense (unlicense)": "Unlicense",
}
# name -> (what the metadata say, the licence, why). Read by a person.
REVIEWED = {
  "cityscapesscripts": (
    "https://github.com/mcordts/cityscapesScripts/blob/master/LICENSE",
    "MIT",
    "The metadata name an address alone; the text that comes with it is MIT's. Of the tests.",
  ),
  "datumaro": ("", "MIT", "The text that comes with it is MIT's; its metadata say nothing."),
  "json-stream-rs-tokenizer": (
    "",
    "MIT",
    "The text that comes with it has MIT's words twice; its metadata say nothing. Of datumaro.",
  ),
  "namex": ("", "Apache-2.0", "The text that comes with it says so; its metadata say nothing."),
  "orjson": (
    "MPL-2.0 AND (Apache-2.0 OR MIT)",
    "MPL-2.0 AND (Apache-2.0 OR MIT)",
    "MPL-2.0 asks something of who changes its files, which nobody here does. Of datumaro.",
  ),
}


class Row(NamedTuple):
  """A distribution that is needed.

  Attributes:
    name: as its metadata spell it.
    version: of what is installed; "" where nothing is.
    licence: an SPDX expression, or what else the metadata say.
    verdict: "", or a word: "told", "reviewed", "refused", "unknown", "not installed".
    extras: names of the extras that need it; "" is the package itself.
  """

  name: str
  version: str
  licence: str
  verdict: str
  extras: tuple[str, ...]


def rows(project: dict, extras) -> list[Row]:
  """Every distribution that a project needs, by name; without itself.

  Args:
    project: the table of that name in pyproject.toml.
    extras: names of its optional dependencies, to be walked as well.
  """
  needed: dict[str, set[str]] = {}
  for extra in ("", *extras):
    for name in _reached(project, extra):
      needed.setdefault(name, set()).add(extra)
  return [_row(name, tuple(sorted(needed[name]))) for name in sorted(needed)]


def _reached(project, extra) -> set[str]:
  """Canonical names of all that the project, or one of its extras, needs, however far away."""
  own = canonicalize_name(project["name"])
  waiting = [(own, extra)]
  seen = set(waiting)
  while waiting:
    name, one = waiting.pop()
    texts = _of_project(project, one) if name == own else _of_installed(name)
    new = {*_asked(texts, one)} - seen
    seen |= new
    waiting += new
  return {name for name, _ in seen} - {own}


def _of_project(project, extra) -> list[str]:
  return project["optional-dependencies"][extra] if extra else project["dependencies"]


def _of_installed(name) -> list[str]:
  try:
    return importlib.metadata.requires(name) or []
  except importlib.metadata.PackageNotFoundError:
    return []


def _asked(texts, extra) -> Iterator[tuple[str, str]]:
  """(name, extra) of what requirements ask for here; extra "" = the distribution itself."""
  for requirement in map(Requirement, texts):
    if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
      for one in ("", *requirement.extras):
        yield canonicalize_name(requirement.name), one


def _row(name, extras) -> Row:
  try:
    metadata = importlib.metadata.metadata(name)
  except importlib.metadata.PackageNotFoundError:
    return Row(name, "", "", "not installed", extras)
  said = licence_of(metadata)
  licence, verdict = said, judged(said)
  if verdict in ("refused", "unknown") and name in REVIEWED and REVIEWED[name][0] == said:
    licence, verdict = REVIEWED[name][1], "reviewed"
  return Row(metadata["Name"], metadata["Version"], licence, verdict, extras)


def licence_of(metadata) -> str:
  """What a distribution's metadata say of its licence, as SPDX where they can be understood."""
  if metadata.get("License-Expression"):
    return metadata["License-Expression"]
  text, _, more = (metadata.get("License") or "").strip().partition("\n")
  classified = [
    line.rpartition(" :: ")[2]
    for line in metadata.get_all("Classifier") or []
    if line.startswith("License :: ") and not line.endswith(":: OSI Approved")
  ]
  # Where the whole text is given, its title says which one it is. A single line can say more than
  # classifiers, which have no "and".
  if text and (not classified or (" AND " in text and not more)):
    classified = [text.strip()]
  return " AND ".join(_SPELT.get(one.lower(), one) for one in classified)


def judged(expression: str) -> str:
  """Whether an Apache-2.0 project may depend on it: "", "told", "refused" or "unknown".

  Of "A OR B" the better one counts, of "A AND B" the worse one; AND binds tighter. Exceptions
  ("WITH") and brackets are for a person to read.
  """
  order = ("", "told", "unknown", "refused")
  if "(" in expression:
    return _judged_one(expression)
  choices = [
    max((_judged_one(one) for one in choice.split(" AND ")), key=order.index)
    for choice in expression.split(" OR ")
  ]
  return min(choices, key=order.index)


def _judged_one(licence: str) -> str:
  licence = licence.strip()
  if licence in PERMISSIVE:
    return ""
  if licence in TOLD:
    return "told"
  return "refused" if _COPYLEFT.search(licence) else "unknown"


def wrong(found: list[Row]) -> list[str]:
  """Sentences about what may not stay so."""
  lines = []
  for row in found:
    if row.verdict in ("refused", "unknown"):
      lines.append(f"{row.name} {row.version}: licence {row.licence or 'not told'}: {row.verdict}")
    if row.verdict == "not installed" and "" in row.extras:
      lines.append(f"{row.name}: not installed, so its licence is not known")
  return lines


def table(found: list[Row]) -> str:
  """Lines for a terminal: name, version, licence, verdict, the extras that need it."""
  cells = [
    (r.name, r.version, r.licence[:60], r.verdict, "" if "" in r.extras else ", ".join(r.extras))
    for r in found
  ]
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in cells]
  return "\n".join(line.rstrip() for line in lines)


def main() -> None:
  keep_lines = argparse.RawDescriptionHelpFormatter
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=keep_lines)
  parser.add_argument("--pyproject", type=Path, default=PYPROJECT)
  parser.add_argument("--extras", nargs="*", help="all by default")
  given = parser.parse_args()
  project = tomllib.loads(given.pyproject.read_text())["project"]
  known = project.get("optional-dependencies", {})
  found = rows(project, known if given.extras is None else given.extras)
  print(table(found))
  missing = [row.name for row in found if row.verdict == "not installed"]
  print(f"{len(found)} distributions, {len(missing)} of them not installed here.")
  complaints = wrong(found)
  print("\n".join(complaints), file=sys.stderr, end="\n" * bool(complaints))
  sys.exit(bool(complaints))


if __name__ == "__main__":
  main()
