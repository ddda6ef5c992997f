"""Which images make up the batch of a step: a pure function of (seed, step).

Nothing is kept between steps, so that a run that starts at any step sees the same
batches as one that walked there. Mask images and box images are two streams, each
walking its own epochs, so that every batch has the same share of masks.
"""

import math
from functools import lru_cache

import numpy as np

from boxseg_jax.errors import InputError

_MASK_STREAM = 0
_BOX_STREAM = 1


def mask_images_per_batch(
  requested: int, *, num_masks: int, num_boxes: int, batch_size: int
) -> int:
  """Number of mask images in each batch.

  Args:
    requested: that number, or -1 for the cube root of the share that they have in the
      data: masks, which say more, come round more often than boxes, but few masks are
      not worn out.
    num_masks: mask images in the data.
    num_boxes: box images in the data.
    batch_size: images in a global batch.

  Returns:
    A number in [0, batch_size]. For -1 it is at least 1 where there are mask images,
    and leaves at least 1 box image where there are any and the batch has room. Where
    the data has one kind only, the batch does, too.

  Raises:
    InputError: requested is neither -1 nor in [0, batch_size].
  """
  if not -1 <= requested <= batch_size:
    raise InputError(
      f"data.mask_images_per_batch is {requested}, but must be -1 (automatic) or between 0 "
      f"and data.batch_size={batch_size}"
    )
  if not num_masks or not num_boxes:
    return batch_size if num_masks else 0
  if requested >= 0:
    return requested
  automatic = round(batch_size * math.cbrt(num_masks / (num_masks + num_boxes)))
  return max(1, min(automatic, batch_size - 1))


def batch_indices(
  step: int,
  *,
  seed: int,
  mask_indices: np.ndarray,
  box_indices: np.ndarray,
  batch_size: int,
  mask_images: int,
) -> np.ndarray:
  """The images of a step's global batch.

  Every epoch of a stream is a permutation of it. The cost does not grow with the
  step.

  Args:
    step: the training step, >= 0.
    seed: in [0, 2**32); another seed gives another order.
    mask_indices: int [num_masks], positions of the mask images; not empty if
      `mask_images` > 0.
    box_indices: int [num_boxes], positions of the box images; not empty if
      `mask_images` < `batch_size`.
    batch_size: images in the global batch.
    mask_images: how many of them are mask images; they come first.

  Returns:
    int64 [batch_size], positions of records.
  """
  masks = _from_stream(_MASK_STREAM, mask_indices, step, mask_images, seed)
  boxes = _from_stream(_BOX_STREAM, box_indices, step, batch_size - mask_images, seed)
  return np.concatenate([masks, boxes])


def _from_stream(stream: int, indices: np.ndarray, step: int, count: int, seed: int) -> np.ndarray:
  if not count:
    return np.zeros(0, np.int64)
  epochs, offsets = np.divmod(step * count + np.arange(count), len(indices))
  chosen = [
    _permutation(seed, stream, int(epoch), len(indices))[offset]
    for epoch, offset in zip(epochs, offsets, strict=True)
  ]
  return np.asarray(indices, np.int64)[chosen]


@lru_cache(maxsize=8)
def _permutation(seed: int, stream: int, epoch: int, size: int) -> np.ndarray:
  # RandomState's stream is frozen by NumPy's policy, Generator's may change: a run
  # resumed after an upgrade has to see the same batches.
  return np.random.RandomState([seed, stream, epoch]).permutation(size)
