"""Networks by name: image -> `Outputs(logits, sigma)`."""

import dataclasses

import jax.numpy as jnp

from boxseg_jax.errors import InputError
from boxseg_jax.models import choice, deeplab, erfnet, pretrained, unet
from boxseg_jax.models.heads import Head, Outputs
from boxseg_jax.models.layers import Style
from boxseg_jax.models.segmenter import Segmenter
from boxseg_jax.models.teacher import Teacher

__all__ = ["NETWORKS", "Outputs", "Segmenter", "build", "pretrained"]

NETWORKS = {"unet": unet.build, "erfnet": erfnet.build, "deeplabv3plus": deeplab.build}
NORMS = {"batch": "batch", "group": "group"}
DTYPES = {"float32": jnp.dtype(jnp.float32), "bfloat16": jnp.dtype(jnp.bfloat16)}


def build(
  name: str,
  *,
  num_classes: int,
  norm: str = "batch",
  dtype: str = "float32",
  axis_name: str | None = None,
  **options,
) -> Segmenter:
  """Builds a network.

  It is used as `module.apply(variables, image, train=bool)` with image float32
  [batch, height, width, 3], RGB in [0, 1], of any size, and gives `Outputs` of that size. With
  train=True ask for `mutable=["batch_stats"]`. Parameters are float32 whatever the dtype.
  Initialise with `jax.random.key(seed, impl="rbg")`: the default generator is compiled once per
  kernel, which takes longer than everything else at the start of a small run.

  Args:
    name: "unet", "erfnet" or "deeplabv3plus".
    num_classes: with the background; 2 gives one logit (sigmoid), more give one per class.
    norm: "batch" or "group" (no `batch_stats`).
    dtype: "float32" or "bfloat16", of encoder and decoder; the heads are always float32.
    axis_name: mapped axis over which batch statistics are averaged in training.
    **options: of the network. unet: encoder "conv" (width, levels), "resnet18", "resnet34",
      "resnet50" (stride_in_1x1, bn_epsilon), "efficientnet_lite0" (bn_epsilon).
      deeplabv3plus: encoder "resnet50" or "resnet101", output_stride 16 or 8, stride_in_1x1,
      bn_epsilon. erfnet: none.

  Raises:
    InputError: for an unknown name, value or option, with the nearest known one.
  """
  constructor = choice.pick(NETWORKS, name, "network")
  if num_classes < 2:
    raise InputError(f"num_classes is {num_classes}; background and one class make 2")
  style = Style(
    norm=choice.pick(NORMS, norm, "norm"),
    dtype=choice.pick(DTYPES, dtype, "dtype"),
    axis_name=axis_name,
  )
  encoder, decoder = choice.construct(constructor, options, name, style=style)
  num_outputs = 1 if num_classes == 2 else num_classes
  without_statistics = dataclasses.replace(style, norm="group")
  _, second = choice.construct(constructor, options, name, style=without_statistics)
  teacher = Teacher(second, num_outputs, style.dtype)
  return Segmenter(encoder, decoder, Head(num_outputs), teacher, style.dtype)
