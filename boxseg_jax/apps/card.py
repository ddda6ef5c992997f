"""A folder as the Hugging Face hub wants it: parameters, configuration, and a card that tells all.

Figures are those of the run's own files; what is not known is said to be unknown.
"""

import json
import math
import os
from pathlib import Path

from ml_collections import ConfigDict

from boxseg_jax import config as configuration
from boxseg_jax.apps.tables import cell
from boxseg_jax.errors import InputError
from boxseg_jax.files import write_json, write_text
from boxseg_jax.training.saved import Network

FILES = ("model.safetensors", "config.json", "README.md")
UNKNOWN = "unknown"
METRIC_TYPES = {"pixel_accuracy": "accuracy"}  # all others are "mean_iou", in the hub's words

CITATION = """\
@inproceedings{neven2021weakly,
  title     = {Weakly-Supervised Semantic Segmentation by Learning Label Uncertainty},
  author    = {Neven, Robby and Neven, Davy and De Brabandere, Bert and Proesmans, Marc and
               Goedem{\\'e}, Toon},
  booktitle = {Proceedings of the IEEE/CVF International Conference on Computer Vision Workshops},
  year      = {2021}
}
"""


def complete_folder(config: ConfigDict, network: Network, workdir: Path, folder: Path) -> str:
  """Puts configuration and card beside `model.safetensors`, and pushes if that is asked for.

  Args:
    config: of it, `export` is used.
    network: the network.
    workdir: its run, or the file that it was read from.
    folder: where `model.safetensors` is.

  Returns:
    What was done, for the person who waits.

  Raises:
    InputError: huggingface_hub is not installed, a file cannot be written, or the hub refuses.
  """
  write_json(folder / "config.json", network.description)
  write_text(folder / "README.md", model_card(config, network, workdir))
  done = f"{folder}: {', '.join(FILES)}."
  repository, token = config.export.repository, os.environ.get("HF_TOKEN", "")
  if repository and token:
    push(folder, repository, token=token)
    return f"{done}\nPushed to {repository}."
  missing = [
    name
    for name, given in (("config.export.repository", repository), ("HF_TOKEN", token))
    if not given
  ]
  return f"{done}\nNot pushed: {' and '.join(missing)} not given."


def push(folder: Path, repository: str, *, token: str) -> None:
  """Uploads the folder's three files, and nothing else that may lie there.

  Args:
    folder: of `complete_folder`.
    repository: "owner/name"; one that does not exist yet is made private.
    token: that may write there.

  Raises:
    InputError: the hub refuses, or cannot be reached.
  """
  hub = _huggingface_hub()
  api = hub.HfApi(token=token)
  try:
    api.create_repo(repository, private=True, exist_ok=True)
    api.upload_folder(repo_id=repository, folder_path=str(folder), allow_patterns=list(FILES))
  except (OSError, ValueError, hub.utils.HfHubHTTPError) as error:
    raise InputError(f"{repository} cannot be pushed to: {error}") from error


def model_card(config: ConfigDict, network: Network, workdir: Path) -> str:
  """The card, Markdown with YAML in front.

  Args:
    config: of it, `export` is used.
    network: the network.
    workdir: its run; of a file, nothing but the network is known.

  Returns:
    The text of README.md.

  Raises:
    InputError: huggingface_hub is not installed.
  """
  trained = _json(workdir / "config.json")
  metrics = _metrics(workdir, network.description["step"], trained)
  facts = _facts(config, network, trained, metrics)
  names = ", ".join(map(cell, network.class_names[1:]))
  sections = (
    f"# Segmentation of {names}",
    _summary(network),
    "## Use\n\n" + _use(config),
    "## Training\n\n" + _training(config, network, trained, _json(workdir / "split.json")),
    "## Metrics\n\n" + _metrics_table(metrics, network, trained),
    "## Licence\n\n" + _licences(config, trained),
    "## Citation\n\n" + f"```bibtex\n{CITATION}```",
  )
  return f"---\n{facts}\n---\n\n" + "\n\n".join(sections) + "\n"


def _facts(config, network, trained, metrics):
  """The YAML in front."""
  hub = _huggingface_hub()
  results = [
    hub.EvalResult(
      task_type="image-segmentation",
      dataset_type=trained["data.source"],
      dataset_name=_data_name(trained),
      dataset_split=trained["data.eval_split"],
      metric_type=METRIC_TYPES.get(name, "mean_iou"),
      metric_name=name,
      metric_value=value,
    )
    for name, value in metrics.items()
    if math.isfinite(value) and not name.startswith("boxes/")
  ]
  data = hub.ModelCardData(
    license=config.export.license or UNKNOWN,
    library_name="boxseg_jax",
    pipeline_tag="image-segmentation",
    tags=["semantic-segmentation", "weakly-supervised", "bounding-boxes", "jax", "flax"],
    metrics=["mean_iou"],
    model_name=f"{network.description['model']['name']}-{'-'.join(network.class_names[1:])}",
    eval_results=results or None,
  )
  return data.to_yaml()


def _summary(network):
  height, width = network.canvas
  model = network.description["model"]
  encoder = f" on the encoder `{model['encoder']}`" if "encoder" in model else ""
  classes = ", ".join(f"{index} {cell(name)}" for index, name in enumerate(network.class_names))
  return f"""\
A `{model["name"]}`{encoder} of boxseg_jax, which trains segmentation networks from many bounding
boxes and few masks. Per pixel it gives the probability of each class and a certainty in (0, 1],
how far the label of a bounding box would be believed there. Classes: {classes}.
Images were fitted to {width}x{height} pixels in training."""


def _use(config):
  source = f"hf://{config.export.repository}" if config.export.repository else "path/to/this/folder"
  return (
    "```python\nimport boxseg_jax\n\n"
    f'model = boxseg_jax.load("{source}")\n'
    'result = model.predict("photo.jpg")\n'
    "result.classes, result.probability, result.certainty\n```"
  )


def _training(config, network, trained, split):
  if not trained:
    return "Not known: the card was written from a file of parameters, without its run."
  masks, boxes = (len(split.get(name, ())) for name in ("mask_ids", "box_ids"))
  height, width = trained["data.canvas"]
  arm = configuration.arms(configuration.get_config())[trained["arm"]]
  learned = "learned from by their boxes alone" if arm.box_images else "not learned from"
  rows = {
    "data": f"{_data_name(trained)} (source `{trained['data.source']}`, "
    f"split `{trained['data.train_split']}`)",
    "licence of the data": config.export.data_license or UNKNOWN,
    "images learned from by their masks": masks,
    f"images {learned}": boxes,
    "canvas": f"{width}x{height} pixels",
    "arm": f"`{trained['arm']}`",
    "steps": f"{network.description['step']} of {trained['train.num_steps']}, "
    f"batch {trained['data.batch_size']}",
    "encoder started from": f"`{_encoder(trained)}`" if _encoder(trained) else "random parameters",
    "seed": trained["seed"],
  }
  return "\n".join(
    ["| | |", "|---|---|", *(f"| {name} | {cell(value)} |" for name, value in rows.items())]
  )


def _metrics_table(metrics, network, trained):
  if not metrics:
    return f"The parameters of step {network.description['step']} were not evaluated."
  shares = {n: f"{100 * v:.1f} %" if math.isfinite(v) else "none" for n, v in metrics.items()}
  rows = [f"| {cell(name)} | {share} |" for name, share in shares.items()]
  told = (
    f"Of step {network.description['step']}, on the split `{trained['data.eval_split']}`; `boxes/` "
    "is measured on training images:\nhow well boxes were made into masks that were never learned "
    "from. Measured by those who trained\nthe network."
  )
  return "\n".join([told, "", "| metric | value |", "|---|---:|", *rows])


def _licences(config, trained):
  known = {
    "parameters": (config.export.license, "those who trained it have not said"),
    "data that it was trained on": (
      config.export.data_license,
      "ask before you use it for more than trying it out",
    ),
  }
  lines = [
    f"- The {what}: {given}." if given else f"- The {what}: **{UNKNOWN}**; {otherwise}."
    for what, (given, otherwise) in known.items()
  ]
  if trained and _encoder(trained):
    lines.append(f"- The encoder started from `{_encoder(trained)}`, whose own licence holds.")
  return "\n".join(lines)


def _data_name(trained):
  """A name that tells no path of the machine it was trained on."""
  if trained["data.source"] == "tfds":
    return trained["data.tfds_name"]
  return Path(trained["data.root"]).name or trained["data.source"]


def _encoder(trained):
  weights = trained["model.encoder.weights"]
  return weights if weights.startswith("hf://") else Path(weights).name


def _metrics(workdir, step, trained):
  """Metrics of the evaluation at this step by name, {} if there was none."""
  log = workdir / "metrics.jsonl"
  for line in reversed(log.read_text().splitlines() if log.is_file() else []):
    values = _parsed(line)
    if values.get("step") == step and any(name.startswith("eval/") for name in values):
      return {n.removeprefix("eval/"): v for n, v in values.items() if n.startswith("eval/")}
  # The run's last evaluation, if that is the step.
  return _json(workdir / "result.json") if step == trained.get("train.num_steps") else {}


def _json(path):
  return _parsed(path.read_text()) if path.is_file() else {}


def _parsed(text):
  try:
    return json.loads(text)
  except ValueError:  # a line that a killed run left unfinished
    return {}


def _huggingface_hub():
  try:
    import huggingface_hub
  except ImportError as error:
    raise InputError(f'--to=hub needs pip install "boxseg_jax[hub]" ({error})') from error
  return huggingface_hub
