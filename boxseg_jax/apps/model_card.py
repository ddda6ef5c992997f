"""A network's card for the Hugging Face hub, made of what its run left behind."""

import json
import os
from pathlib import Path

from boxseg_jax import __version__
from boxseg_jax.errors import InputError
from boxseg_jax.training.saved import Network

_CARD = """\
---
library_name: boxseg_jax
pipeline_tag: image-segmentation
tags:
- image-segmentation
- weakly-supervised
- jax
- flax
{license}---

# {title}

A segmentation network of the classes {classes}, trained by `boxseg_jax` {version}{labels}.

| step {step}, on the evaluation split | % |
|---|---:|
{metrics}

## Use

```python
import boxseg_jax

model = boxseg_jax.load("model.safetensors")
result = model.predict("photo.jpg")
result.classes, result.probability, result.certainty
```

Images of any size are scaled to {width} x {height} pixels, and the result back to their own size.

## Data

{data}

## Source

Neven et al., "Weakly-Supervised Semantic Segmentation by Learning Label Uncertainty", ICCV
Workshops 2021, arXiv 2110.05926.
"""


def card(network: Network, workdir: Path, *, data_license: str) -> str:
  """Markdown with the front matter that the hub reads.

  Args:
    network: the network.
    workdir: of its run: `metrics.jsonl`, `split.json` and `config.json` are told where they are.
    data_license: of the data, as the hub abbreviates it; "" = not known.
  """
  kind = network.description["model"]
  encoder = f" on {kind['encoder']}" if "encoder" in kind else ""
  return _CARD.format(
    license=f"license: {data_license}\n" if data_license else "",
    title=f"{kind['name']}{encoder}: {', '.join(network.class_names[1:])}",
    classes=", ".join(network.class_names),
    version=__version__,
    labels=_labels(_read(workdir / "split.json")),
    step=network.description["step"],
    metrics=_metrics(workdir / "metrics.jsonl", network.description["step"]),
    height=network.canvas[0],
    width=network.canvas[1],
    data=_data(_read(workdir / "config.json"), data_license),
  )


def _read(path):
  return json.loads(path.read_text()) if path.is_file() else {}


def _labels(split):
  if not split:
    return ""
  return f": {len(split['mask_ids'])} images with masks, {len(split['box_ids'])} with boxes only"


def _metrics(path, step):
  """Those of the step that is exported; not measured where there was no evaluation."""
  lines = path.read_text().splitlines() if path.is_file() else []
  found = {}
  for row in map(json.loads, lines):
    if row["step"] == step:
      found |= {name.removeprefix("eval/"): row[name] for name in row if name.startswith("eval/")}
  shown = {name: value for name, value in found.items() if "iou" in name and value is not None}
  rows = [f"| {name} | {100 * value:.1f} |" for name, value in shown.items()]
  return "\n".join(rows or ["| not measured | |"])


def _data(config, data_license):
  source = f"Read as `{config['data.source']}`. " if config else ""
  return f"{source}Licence: {data_license or 'not known; ask whoever trained this network'}."


def push(folder: Path, repository: str) -> str:
  """Uploads a folder to the hub, as the owner of the token in HF_TOKEN.

  Args:
    folder: what to upload.
    repository: "owner/name".

  Returns:
    What was done.

  Raises:
    InputError: no token, no `huggingface_hub`, or the hub refuses.
  """
  token = os.environ.get("HF_TOKEN")
  if not token:
    raise InputError(f"{folder} is written, but not pushed: the environment has no HF_TOKEN")
  try:
    from huggingface_hub import HfApi, utils
  except ImportError as error:
    raise InputError(f"pushing {folder} needs: pip install boxseg_jax[hub]") from error
  api = HfApi(token=token)
  try:
    api.create_repo(repository, exist_ok=True)
    api.upload_folder(repo_id=repository, folder_path=folder)
  except (OSError, ValueError, utils.HfHubHTTPError) as error:
    raise InputError(f"{folder} cannot be pushed to {repository}: {error}") from error
  return f"{folder} -> {repository}"
