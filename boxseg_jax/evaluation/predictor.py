"""Prediction of photos of any size, for people who use a trained network.

"fit" scales a photo to the canvas, as in training, and the logits back to the photo's own size;
"slide" moves a window of the canvas's size over it (`tiles`). Either way the network is compiled
for the canvas alone, in batches of powers of two. Resizing is a program of its own, compiled for
the few sizes that photos' own are rounded up to.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import groupby, islice
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from boxseg_jax.data import examples, feed
from boxseg_jax.data.photos import Photo
from boxseg_jax.errors import InputError
from boxseg_jax.evaluation import tiles as tiling
from boxseg_jax.evaluation.resize import highest, in_strips, joined
from boxseg_jax.losses import uncertainty

_MOST_PIXELS = 1 << 26  # of the photos of one batch
_SORTED = 4  # batches of photos among which those of like size are found


class Scores(NamedTuple):
  """What the network says of a photo, at its own size.

  Attributes:
    logits: float32 [height, width, num_classes].
    sigma: float32 [height, width], >= 0.
  """

  logits: np.ndarray
  sigma: np.ndarray


class Decision(NamedTuple):
  """What comes of it; a twelfth of the memory or less.

  Attributes:
    classes: uint8 [height, width], the most likely class.
    certainty: uint8 [height, width], 1 / kappa in units of 1 / 255.
  """

  classes: np.ndarray
  certainty: np.ndarray


OnError = Callable[[Photo, InputError], None]


def raise_error(photo: Photo, error: InputError) -> None:
  """Stops at the first photo that cannot be read."""
  del photo
  raise error


class Predictor:
  """A network bound to how photos are shown to it."""

  def __init__(
    self,
    predict_fn: tiling.PredictFn,
    state: Any,
    *,
    canvas: tuple[int, int],
    tiles: str = "fit",
    overlap: float = 0.25,
    mirror: bool = False,
    batch_size: int = 8,
    workers: int = 4,
  ):
    """Binds the network; each shape is compiled when it is first met.

    Args:
      predict_fn: (state, batch as from `augment.prepare`) -> (logits float32 [batch, height,
        width, K], sigma float32 [batch, height, width]).
      state: what it takes.
      canvas: (height, width) in pixels that photos are fitted to, or of a window.
      tiles: "fit" or "slide", see above.
      overlap: least share of a window that the next one sees too, in [0, 1); of "slide".
      mirror: average with the prediction of the mirrored photo, at twice the price.
      batch_size: photos, or windows of one photo, at once.
      workers: threads that read.

    Raises:
      InputError: a value that makes no sense.
    """
    if tiles not in ("fit", "slide"):
      raise InputError(f"tiles is {tiles!r}, but must be 'fit' or 'slide'")
    if not 0 <= overlap < 1:
      raise InputError(f"overlap is {overlap!r}, but must be in [0, 1)")
    if batch_size < 1 or workers < 1:
      raise InputError("batch_size and workers must be at least 1")
    if mirror:
      predict_fn = tiling.mirrored_too(predict_fn)
    self._slides = tiles == "slide"
    self._canvas = (canvas[0], canvas[1])
    self._batch_size, self._workers = batch_size, workers
    self._on_canvas = partial(tiling.tile_predictor(predict_fn), state)
    self._at_own_size = jax.jit(_at_own_size, static_argnames=("full_shape", "use"))
    self._bands = partial(
      tiling.predict_bands,
      self._on_canvas,
      canvas=self._canvas,
      overlap=overlap,
      batch_size=batch_size,
    )

  def scores(
    self, photos: Iterable[Photo], on_error: OnError = raise_error
  ) -> Iterator[tuple[Photo, Scores]]:
    """Logits and sigma of each photo; fitted ones not quite in order, those of like size together.

    Args:
      photos: read some ahead, in threads.
      on_error: called with a photo that cannot be read and the InputError; unless it raises, the
        photo is left out.
    """
    if not self._slides:
      yield from self._fitted(photos, on_error, _SCORES)
      return
    for photo, bands in self._slid(photos, on_error):
      pairs = [(band.logits, band.sigma) for band in bands]
      yield photo, Scores(*map(np.concatenate, zip(*pairs, strict=True)))

  def decisions(
    self, photos: Iterable[Photo], on_error: OnError = raise_error
  ) -> Iterator[tuple[Photo, Decision]]:
    """Class and certainty of each photo; order and arguments as of `scores`."""
    if not self._slides:
      yield from self._fitted(photos, on_error, _DECISION)
      return
    for photo, bands in self._slid(photos, on_error):
      pairs = [(band.classes, _in_255ths(uncertainty.certainty(band.sigma))) for band in bands]
      yield photo, Decision(*map(np.concatenate, zip(*pairs, strict=True)))

  def _slid(self, photos, on_error):
    for photo, image in self._read(lambda photo: photo.read(), photos, on_error, self._workers):
      yield photo, self._bands(image)

  def _fitted(self, photos, on_error, use):
    """Photo by photo what `use` makes of them, one batch ahead of the reader."""
    read = partial(_read_fitted, canvas=self._canvas)
    reach = _SORTED * self._batch_size
    fitted = self._read(read, photos, on_error, reach)
    running: list = []
    for batch in _batches(_by_size(fitted, reach), self._batch_size):
      finished, running = running, self._started(batch, use)
      yield from _cropped(finished)
    yield from _cropped(running)

  def _read(self, read, photos, on_error, depth):
    """(photo, what was read of it) of all but the broken ones."""

    def attempt(photo):
      try:
        return photo, read(photo), None
      except InputError as error:
        return photo, None, error

    for photo, content, error in feed.ahead(attempt, photos, self._workers, depth):
      if error is None:
        yield photo, content
      else:
        on_error(photo, error)

  def _started(self, batch, use):
    """[(photos of like size, what `use` makes of them)]; the device may still be at it."""
    images, extents, sizes = (
      _filled(column) for column in zip(*(c for _, c in batch), strict=True)
    )
    scores = self._on_canvas(images, extents)
    started = []
    for full_shape, group in groupby(range(len(batch)), lambda row: _bucket(batch[row])):
      rows = list(group)
      outputs = self._at_own_size(
        *scores, extents, sizes, _filled(rows), full_shape=full_shape, use=use
      )
      started.append(([batch[row] for row in rows], outputs))
    return started


def _filled(values):
  """Stacked, the last repeated up to a power of two: few numbers of photos are compiled."""
  count = 1 << (len(values) - 1).bit_length()
  return np.stack([*values, *[values[-1]] * (count - len(values))])


def _at_own_size(logits, sigma, extents, sizes, rows, *, full_shape, use):
  # Of the batch only these, before anything is made of the others.
  logits, sigma, extents, sizes = (column[rows] for column in (logits, sigma, extents, sizes))
  planes = jnp.concatenate([use.needs(logits), sigma[..., None]], axis=-1)
  return jax.tree.map(joined, in_strips(use.makes, planes, extents, sizes, full_shape))


class _Use(NamedTuple):
  """What is wanted at a photo's own size, and what has to be resized for it beside sigma."""

  needs: Callable[[jax.Array], jax.Array]
  makes: Callable[[jax.Array], Scores | Decision]


def _scores(planes):
  logits: Any = jnp.moveaxis(planes[:, :-1], 1, -1)
  return Scores(logits, planes[:, -1])


def _above_first(logits):
  """A plane less to resize than the logits, and the same class is the highest."""
  return logits[..., 1:] - logits[..., :1]


def _decision(planes):
  first = jnp.zeros_like(planes[:, :1])
  classes: Any = highest(jnp.concatenate([first, planes[:, :-1]], axis=1)).astype(jnp.uint8)
  return Decision(classes, _in_255ths(uncertainty.certainty(planes[:, -1])))


_SCORES = _Use(lambda logits: logits, _scores)
_DECISION = _Use(_above_first, _decision)


def _in_255ths(share):
  return jnp.round(255.0 * share).astype(jnp.uint8)


def _read_fitted(photo: Photo, canvas):
  """(image uint8 [*canvas, 3], extent float32 [2], (height, width) of the photo in pixels)."""
  height, width = photo.size()
  size = (height, width)
  image = photo.read_reduced(examples.decoded_size(size, canvas))
  return *examples.fit_image(image, canvas), size


def _by_size(fitted, reach):
  """The same, sorted by size among so many."""
  fitted = iter(fitted)
  while some := list(islice(fitted, reach)):
    yield from sorted(some, key=_bucket)


def _batches(fitted, batch_size):
  """Up to `batch_size` neighbours whose own sizes fit into memory together."""
  batch: list = []
  for one in fitted:
    if batch and (len(batch) == batch_size or _pixels([*batch, one]) > _MOST_PIXELS):
      yield batch
      batch = []
    batch.append(one)
  if batch:
    yield batch


def _bucket(one):
  """The size that a photo is resized to, a rounded-up one of its own."""
  _, (_, _, size) = one
  return feed.bucket(size)


def _pixels(batch):
  return sum(height * width for height, width in map(_bucket, batch))


def _cropped(started):
  for group, outputs in started:
    outputs = jax.device_get(outputs)
    for index, (photo, (_, _, (height, width))) in enumerate(group):
      # Copied, or the whole group would stay as long as any part of it.
      own = [whole[index, :height, :width].copy() for whole in outputs]
      yield photo, type(outputs)(*own)
