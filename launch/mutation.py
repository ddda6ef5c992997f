"""Mutation testing: do tests notice when a line of the losses, augmentation or metrics is wrong?

    pip install "cosmic-ray>=8.4,<9"
    python launch/mutation.py --sample=200 --seed=0 --out=runs/mutation.jsonl

takes a random sample of the changes that cosmic-ray knows ("mutants"; `--sample=0`: all), in
proportion to the files named in `mutation.toml`, runs the tests named there on each, and prints
how many were noticed ("killed"). Every result is a line of `--out`; what is there already is not
run again. `--survivors-of=FILE` runs only what survived in an earlier file.

cosmic-ray's own runner writes each mutant to disk and starts Python for it; here one process that
has imported JAX and holds its compiled programs runs mutant after mutant, put in place by an import
hook: no file is touched, and a mutant costs seconds. One that hangs is ended, and counted apart: it
may be the mutant, or a busy machine.

Not counted as mutants, by rule: annotations, docstrings and messages of errors; the same program
written otherwise; and arithmetic made bitwise or the other way round, which arrays of floats refuse
at once. Mutants that no test can notice ("equivalent") are listed in `mutation.toml`, with reasons.
"""

import argparse
import ast
import contextlib
import difflib
import importlib.abc
import importlib.machinery
import importlib.util
import io
import itertools
import json
import multiprocessing
import os
import random
import sys
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = tomllib.loads((ROOT / "launch" / "mutation.toml").read_text())
BITWISE = {"RShift", "LShift", "BitOr", "BitAnd", "BitXor"}
RUNS_PER_PROCESS = 40  # compiled programs of mutants pile up
LEAST_PER_FILE = 5


def candidates(file: str) -> list[tuple[str, int]]:
  """(operator, which of its occurrences in the file) of everything that cosmic-ray would change."""
  from cosmic_ray import ast as trees
  from cosmic_ray import plugins

  nodes, found = list(trees.ast_nodes(trees.get_ast((ROOT / file).read_text()))), []
  for name in sorted(plugins.operator_names()):
    operator = plugins.get_operator(name)
    if _is_fair(name) and not operator.arguments():
      count = sum(len(list(operator().mutation_positions(node))) for node in nodes)
      found += [(name, occurrence) for occurrence in range(count)]
  return found


def mutants(file: str, chosen):
  """Those of the candidates that count, each once: operator, line, what it was and is, source."""
  from cosmic_ray import mutating, plugins

  source = (ROOT / file).read_text()
  seen = {_meaning(source)}
  for name, occurrence in chosen:
    changed = mutating.mutate_code(source, plugins.get_operator(name)(), occurrence)
    with contextlib.suppress(SyntaxError):  # no program, no mutant
      meaning = _meaning(changed)
      if meaning not in seen:
        seen.add(meaning)
        yield {"file": file, "operator": name, **_difference(source, changed)}


def _is_fair(name):
  """False for arithmetic made bitwise and the other way round."""
  if "BinaryOperator" not in name:
    return True
  before, after = name.split("_")[-2:]
  return (before in BITWISE) == (after in BITWISE)


class _OnlyMeaning(ast.NodeTransformer):
  """Leaves out annotations, docstrings and messages of errors."""

  def visit_Expr(self, node):
    return None if isinstance(node.value, ast.Constant) else self.generic_visit(node)

  def visit_arg(self, node):
    node.annotation = None
    return node

  def visit_FunctionDef(self, node):
    node.returns = None
    return self.generic_visit(node)

  def visit_AnnAssign(self, node):
    node.annotation = ast.Constant(None)
    return self.generic_visit(node)

  def visit_Raise(self, node):
    if isinstance(node.exc, ast.Call):
      node.exc.args = []
    return node


def _meaning(source):
  return ast.dump(_OnlyMeaning().visit(ast.parse(source)))


def _difference(source, changed):
  before, after = source.splitlines(), changed.splitlines()
  edits = difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
  _, top, bottom, start, end = next(edit for edit in edits if edit[0] != "equal")
  old, new = ("\n".join(part).strip() for part in (before[top:bottom], after[start:end]))
  return {"line": top + 1, "old": old, "new": new, "source": changed}


def sample(files, size: int, seed: int) -> list[dict]:
  """`size` mutants in proportion to the files' candidates, at least 5 of each; 0 = all.

  A larger sample of the same seed contains the smaller one.
  """
  every, chosen = {file: candidates(file) for file in files}, []
  total = sum(map(len, every.values()))
  for file, of_file in every.items():
    random.Random(f"{seed}:{file}").shuffle(of_file)
    share = max(round(size * len(of_file) / total), LEAST_PER_FILE) if size else None
    chosen += itertools.islice(mutants(file, of_file), share)
  random.Random(seed).shuffle(chosen)  # a run that is stopped early has a sample, too
  return chosen


def survivors(files, path: Path) -> list[dict]:
  """Mutants that survived in the results of an earlier run, as far as their lines still stand."""
  earlier = [result for result in read_lines(path) if result["outcome"] == "survived"]
  found = []
  for file in files:
    wanted = {(r["operator"], r["old"], r["new"]) for r in earlier if r["file"] == file}
    operators = {operator for operator, _, _ in wanted}
    again = mutants(file, [one for one in candidates(file) if one[0] in operators])
    found += [m for m in again if (m["operator"], m["old"], m["new"]) in wanted]
  return found


class _Changed(importlib.abc.MetaPathFinder, importlib.machinery.SourceFileLoader):
  """Gives one module another source."""

  def __init__(self, name, path, source):
    super().__init__(name, path)
    self.source = source

  def find_spec(self, name, path=None, target=None):
    if name == self.name:
      return importlib.util.spec_from_file_location(name, self.path, loader=self)
    return None

  def get_code(self, fullname):
    return compile(self.source, self.path, "exec")


class _FirstFailure:
  """A plugin of pytest that remembers which test noticed."""

  name = ""

  def pytest_runtest_logreport(self, report):
    if report.failed and not self.name:
      self.name = report.nodeid


def work(connection):
  """Runs mutants until there are no more: takes (file, source, tests), gives (status, test)."""
  os.chdir(ROOT)
  sys.path.insert(0, str(ROOT))
  while (task := connection.recv()) is not None:
    connection.send(_run_tests(*task))


def _run_tests(file, source, tests):
  import pytest

  _forget_own_modules()
  name = ".".join(Path(file).with_suffix("").parts)
  hook, first = _Changed(name, str(ROOT / file), source), _FirstFailure()
  sys.meta_path.insert(0, hook)
  try:
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
      status = pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests], plugins=[first])
  finally:
    sys.meta_path.remove(hook)
  return int(status), first.name, output.getvalue()[-2000:]


def _forget_own_modules():
  """The package and its tests are imported anew; JAX and all else stay."""
  own = tuple(str(ROOT / folder) + os.sep for folder in ("boxseg_jax", "tests"))
  for name, module in list(sys.modules.items()):
    if (getattr(module, "__file__", None) or "").startswith(own):
      del sys.modules[name]


class Runner:
  """A process that runs mutants, replaced when it hangs or has run many."""

  def __init__(self):
    self._process = self._connection = None
    self._runs = 0

  def run(self, file, source, timeout):
    """(status of pytest, first failed test, end of its output); None: it took too long or died."""
    if self._process is None:
      self._start()
    self._connection.send((file, source, SETTINGS["tests"][file]))
    self._runs += 1
    answer = None
    with contextlib.suppress(EOFError):
      answer = self._connection.recv() if self._connection.poll(timeout) else None
    if answer is None or self._runs >= RUNS_PER_PROCESS:
      self.stop()
    return answer

  def _start(self):
    spawn = multiprocessing.get_context("spawn")
    self._connection, theirs = spawn.Pipe()
    self._process, self._runs = spawn.Process(target=work, args=(theirs,), daemon=True), 0
    self._process.start()
    theirs.close()

  def stop(self):
    if self._process is not None:
      self._process.kill()
      self._process.join()
    self._process = None


def judge(mutant, runner, timeout):
  """The mutant without its source, with what became of it."""
  result = {key: value for key, value in mutant.items() if key != "source"}
  reason = _why_equivalent(mutant)
  if reason:
    return result | {"outcome": "equivalent", "reason": reason}
  start = time.monotonic()
  answer = runner.run(mutant["file"], mutant["source"], timeout)
  seconds = round(time.monotonic() - start, 1)
  if answer is None:
    return result | {"outcome": "timed out", "seconds": seconds}
  status, test, output = answer
  # 2: the module or a test could not even be imported; 4: nor are the named tests found, then.
  if status not in (0, 1, 2, 4):
    raise SystemExit(f"pytest ended with status {status}:\n{output}")
  return result | {"outcome": "killed" if status else "survived", "by": test, "seconds": seconds}


def _why_equivalent(mutant):
  for known in SETTINGS.get("equivalent", ()):
    if all(known[key] == mutant[key] for key in ("file", "old", "new")):
      return known["reason"]
  return None


def time_limits(files, runner):
  """Five times what the tests of each file take as it is, which they must pass."""
  limits = {}
  for file in files:
    tests = tuple(SETTINGS["tests"][file])
    if tests not in limits:
      start = time.monotonic()
      status, test, output = runner.run(file, (ROOT / file).read_text(), 1800) or (None, "", "")
      if status != 0:
        raise SystemExit(f"{file}: its tests fail without any mutant: {test}\n{output}")
      limits[tests] = 30 + 5 * (time.monotonic() - start)
      print(f"{' '.join(tests)}: {time.monotonic() - start:.1f} s", flush=True)
  return {file: limits[tuple(SETTINGS["tests"][file])] for file in files}


def key_of(mutant):
  return mutant["file"], mutant["line"], mutant["old"], mutant["new"]


def read_lines(path: Path) -> list[dict]:
  return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def print_table(results):
  """Files by row; the share is of the killed among the killed and the survived."""
  outcomes = ("killed", "survived", "equivalent", "timed out")
  print(f"{'file':36} {'sampled':>8}" + "".join(f"{name:>11}" for name in (*outcomes, "share")))
  for file in [*sorted({result["file"] for result in results}), "all"]:
    of_file = [r["outcome"] for r in results if file in ("all", r["file"])]
    counts = [of_file.count(outcome) for outcome in outcomes]
    share = f"{100 * counts[0] / max(counts[0] + counts[1], 1):.1f} %"
    print(
      f"{file:36} {len(of_file):8}" + "".join(f"{count:11}" for count in counts) + f"{share:>11}"
    )


def main(given):
  files = [file for file in SETTINGS["tests"] if given.only in file]
  if given.survivors_of:
    chosen = survivors(files, given.survivors_of)
  else:
    chosen = sample(files, given.sample, given.seed)
  done = {key_of(result) for result in read_lines(given.out)}
  left = [mutant for mutant in chosen if key_of(mutant) not in done]
  print(f"{len(chosen)} mutants, {len(left)} to run", flush=True)
  given.out.parent.mkdir(parents=True, exist_ok=True)
  runner = Runner()
  limits = time_limits(sorted({mutant["file"] for mutant in left}), runner)
  for mutant in left:
    result = judge(mutant, runner, limits[mutant["file"]])
    with given.out.open("a") as lines:
      lines.write(json.dumps(result) + "\n")
    if result["outcome"] == "survived":
      print(
        f"{result['file']}:{result['line']}\n  - {result['old']}\n  + {result['new']}", flush=True
      )
  runner.stop()
  wanted = set(map(key_of, chosen))
  print_table([result for result in read_lines(given.out) if key_of(result) in wanted])


if __name__ == "__main__":
  keep_lines = argparse.RawDescriptionHelpFormatter
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=keep_lines)
  parser.add_argument("--sample", type=int, default=200, help="mutants to try; 0 = all")
  parser.add_argument("--seed", type=int, default=0, help="of the sample")
  parser.add_argument("--only", default="", help="only files whose path has this in it")
  parser.add_argument("--out", type=Path, default=ROOT / "runs" / "mutation.jsonl")
  parser.add_argument("--survivors-of", type=Path, help="an earlier --out")
  os.environ["JAX_PLATFORMS"] = "cpu"
  os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / "runs" / "mutation_programs"))
  os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
  main(parser.parse_args())
