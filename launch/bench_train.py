"""Measures training steps beside PyTorch's: the same network, size, batch and work.

    python launch/bench_train.py --to=runs/train
    python launch/bench_train.py --networks erfnet unet-r34 deeplabv3plus-r50 \
      --sizes 360x480 512x1024 --dtypes float32 bfloat16 --batch-size 16 --method --to=runs/train

Every row does a forward and backward pass of the network, cross entropy at the images' size and
AdamW on a batch of noise that lies on the device, and waits for each step's loss while the next
step is under way. "jax" is boxseg_jax; "torch" is PyTorch in channels_last, with autocast for
bfloat16, by torch.compile where that works; "torch-eager" without it; "smp" and "torchvision" are
the networks of those libraries that come nearest. Each runs in a process of its own, one after the
other, --rounds times; the best of --repeats counts. Compiling is not counted, but told. FLOPs are
those of convolutions and matrix products, by one rule on both sides. Nothing needs TensorFlow,
data, weights or a network connection; what cannot be measured is left out by name.

--method also takes our own training step apart: augmentation, loss, bootstrapping, the decoder that
is shown the boxes (`python -m boxseg_jax.main --mode=benchmark` does that for any configuration).
"""

import argparse
import itertools
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

NETWORKS = ("unet-conv", "unet-r34", "erfnet", "deeplabv3plus-r50")
FRAMEWORKS = ("jax", "torch", "torch-eager", "smp", "torchvision")
# As shares of ours: what differs by more is not the same work.
_SAME_PARAMETERS, _SAME_FLOPS = 0.03, 0.05


def bench(rows, *, rounds, timeout):
  """Runs every row in a process of its own, round by round.

  Args:
    rows: dicts, see `planned`.
    rounds: how often.
    timeout: seconds that a process may take.

  Returns:
    (the rows with what their fastest round found, names left out -> why).
  """
  found, left_out = {}, {}
  for round_, (index, row) in itertools.product(range(rounds), enumerate(rows)):
    if title(row) in left_out:
      continue
    print(f"[{round_ + 1}/{rounds}] {title(row)}", file=sys.stderr, flush=True)
    measured = _child(row, timeout)
    if "left_out" in measured:
      left_out[title(row)] = measured["left_out"]
      found.pop(index, None)
    elif index not in found or measured["seconds_per_step"] < found[index]["seconds_per_step"]:
      measured["images_per_second"] = row["batch_size"] / measured["seconds_per_step"]
      found[index] = row | measured
  return [found[index] for index in sorted(found)], left_out


def planned(given):
  """Every combination that is asked for; programs to be compared follow each other."""
  return [
    {
      "network": network,
      "size": size,
      "dtype": dtype,
      "batch_size": given.batch_size,
      "num_classes": given.classes,
      "framework": framework,
      "steps": given.steps,
      "repeats": given.repeats,
      "method": given.method,
    }
    for network, size, dtype, framework in itertools.product(
      given.networks, given.sizes, given.dtypes, given.frameworks
    )
  ]


def title(row):
  return f"{row['framework']} {_case(row)}"


def _case(row):
  height, width = row["size"]
  return f"{row['network']} {height}x{width} {row['dtype']}"


def _child(row, timeout):
  kind = "jax" if row["framework"] == "jax" else "torch"
  script = Path(__file__).with_name(f"bench_train_{kind}.py")
  call = [sys.executable, str(script), json.dumps(row)]
  root = str(script.parents[1])  # so that boxseg_jax need not be installed
  paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
  environment = {**os.environ, "PYTHONPATH": paths}
  try:
    done = subprocess.run(
      call, capture_output=True, text=True, timeout=timeout, env=environment, check=False
    )
  except subprocess.TimeoutExpired:
    return {"left_out": f"took longer than {timeout} s"}
  lines = (done.stderr if done.returncode else done.stdout).strip().splitlines()
  if done.returncode or not lines:
    return {"left_out": lines[-1] if lines else f"ended with status {done.returncode}"}
  return json.loads(lines[-1])


def compare(rows):
  """Speeds beside ours, and what makes a comparison unequal.

  Args:
    rows: what `bench` found.

  Returns:
    (lines of text on rows that do not do the same work; the rows, those of other frameworks with
    "ours_to_this", how many times their images/s we reach).
  """
  ours = {_case(row): row for row in rows if row["framework"] == "jax"}
  unequal, compared = [], []
  for row in rows:
    mine = ours.get(_case(row))
    if mine is None or mine is row:
      compared.append(row)
      continue
    ratio = row["seconds_per_step"] / mine["seconds_per_step"]
    compared.append(row | {"ours_to_this": ratio})
    limits = {"parameters": _SAME_PARAMETERS, "flops_per_step": _SAME_FLOPS}
    for name, limit in limits.items():
      more = row[name] / mine[name] - 1
      if abs(more) > limit:
        unequal.append(f"{title(row)} is other work: {name.replace('_', ' ')} {more:+.1%} of ours")
    if row["device"].lower() != mine["device"].lower():
      unequal.append(f"{title(row)} ran on {row['device']}, ours on {mine['device']}")
  return unequal, compared


def table(rows):
  """Markdown of all rows."""
  lines = [
    "| network, height x width | dtype | batch | program | images/s | ours to it | ms a step "
    "| GFLOP a step | TFLOP/s | of peak | million parameters | compiling, s | memory, MB |",
    "|---|---|---:|---|" + "---:|" * 9,
  ]
  for row in rows:
    height, width = row["size"]
    share, peak = row.get("ours_to_this"), _peak(row, rows)
    speed = row["flops_per_step"] / row["seconds_per_step"]
    cells = [
      f"{row['network']} {height}x{width}",
      row["dtype"],
      str(row["batch_size"]),
      f"{row['framework']} ({row['how']})",
      f"{row['images_per_second']:.4g}",
      "" if share is None else f"{share:.2f}x",
      f"{1e3 * row['seconds_per_step']:.4g}",
      f"{row['flops_per_step'] / 1e9:.4g}",
      f"{speed / 1e12:.3g}",
      f"{speed / peak:.1%}" if peak else "-",
      f"{row['parameters'] / 1e6:.3f}",
      f"{row['first_step_seconds']:.3g}",
      f"{row['memory_bytes'] / 1e6:.4g}" if row["memory_bytes"] else "-",
    ]
    lines.append(f"| {' | '.join(cells)} |")
  return "\n".join(lines)


def _peak(row, rows):
  """The published peak, which our rows tell, of this row's device."""
  same = (
    other["peak_flops_per_second"]
    for other in rows
    if "peak_flops_per_second" in other
    and (other["device"], other["dtype"]) == (row["device"], row["dtype"])
  )
  return next(same, None)


def method_table(rows):
  """Markdown of what our own training step is made of; "" where it was not asked for."""
  lines = []
  for row in rows:
    for case in row.get("taken_apart", {"cases": []})["cases"]:
      lines.append(
        f"| {_case(row)} | {case['step']} | {1e3 * case['seconds']:.4g} "
        f"| {case['over_cross_entropy']:+.1%} |"
      )
  head = "| network | our training step with | ms | over cross entropy |\n|---|---|---:|---:|\n"
  return head + "\n".join(lines) + "\n" if lines else ""


def page(about, rows, unequal, left_out):
  """All of it as Markdown."""
  notes = [f"{title(row)}: {row['note']}" for row in rows if row["note"]]
  notes += unequal + [f"{name} left out: {why}" for name, why in left_out.items()]
  versions = [f"{name}: {about[name]}" for name in ("device", "host cores", "load before")]
  versions += [f"{name} {number}" for name, number in about["versions"].items()]
  parts = [
    "# Training steps",
    table(rows),
    method_table(rows),
    "\n".join(f"- {note}" for note in notes),
    f"    {about['command']}",
    ", ".join(versions),
  ]
  return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def _about(rows, load):
  versions = {}
  for row in rows:
    versions |= row["versions"]
  return {
    "command": shlex.join(["python", *sys.argv]),
    "device": ", ".join(sorted({row["device"] for row in rows})),
    "host cores": len(os.sched_getaffinity(0)),
    "load before": round(load, 1),
    "versions": versions,
  }


def _size(text):
  height, width = map(int, text.split("x"))
  if min(height, width) < 1:
    raise ValueError(text)
  return [height, width]


def _count(text):
  number = int(text)
  if number < 1:
    raise ValueError(text)
  return number


def _options():
  keep_lines = argparse.RawDescriptionHelpFormatter
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=keep_lines)
  add = parser.add_argument
  add("--networks", nargs="+", choices=NETWORKS, default=["unet-r34"])
  add("--sizes", nargs="+", type=_size, default=[[360, 480]], help="HEIGHTxWIDTH, in pixels")
  add("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=["float32"])
  add("--frameworks", nargs="+", choices=FRAMEWORKS, default=list(FRAMEWORKS))
  add("--batch-size", type=_count, default=4)
  add("--classes", type=_count, default=4, help="with the background, at least 3")
  add("--steps", type=_count, default=10, help="that are timed at once")
  add("--repeats", type=_count, default=3, help="of these, in each process")
  add("--rounds", type=_count, default=1, help="of all processes")
  add("--method", action="store_true", help="also take our own training step apart")
  add("--timeout", type=_count, default=1800, help="seconds that one process may take")
  add("--to", help="write TO.json and TO.md")
  given = parser.parse_args()
  if given.classes < 3:
    parser.error("--classes must be at least 3: two are one logit here and two in PyTorch")
  return given


def main():
  given, load = _options(), os.getloadavg()[0]
  rows, left_out = bench(planned(given), rounds=given.rounds, timeout=given.timeout)
  unequal, rows = compare(rows)
  about = _about(rows, load)
  text = page(about, rows, unequal, left_out)
  print(text)
  if given.to:
    Path(given.to).parent.mkdir(parents=True, exist_ok=True)
    content = about | {"rows": rows, "unequal": unequal, "left_out": left_out}
    Path(given.to + ".json").write_text(json.dumps(content, indent=2) + "\n")
    Path(given.to + ".md").write_text(text)
  if not rows:
    sys.exit("error: nothing could be measured")


if __name__ == "__main__":
  main()
