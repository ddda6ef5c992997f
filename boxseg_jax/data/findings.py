"""Judges a split: what would stop a training, what would teach something else, what to look at.

Errors stop every run before its first step; only what is a mistake for certain is one:

- images cannot be used (with `data.on_bad_image=stop`, or more than may be skipped): files or
  values are broken;
- most masks of images with boxes show no object, or no mask at all shows one (unless these are
  images without any, and boxes elsewhere show some): masks of 0 and 255 are read as void;
- most pixels of objects lie outside of all boxes of their class: boxes or class ids are in another
  order;
- most images with objects in their masks have no box, and `data.mask_fraction` may hide the masks:
  all of these images would be taught as background;
- no image shows an object, by mask or box: there is nothing to learn.

Everything else may be meant, or be harmless, and is a warning: the same in few images, loose boxes
(the method bears them), masks that are the boxes over again (windows of a house are), classes
without examples, much void, objects that vanish on the canvas, many images without any annotation,
masks hidden in a set that lacks some anyway, images that are there twice or in both splits (the
numbers would lie, what is learned would not). Boxes that nothing is learned from (the evaluation
split, arms without box images) only ever give warnings.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from boxseg_jax.batch import BACKGROUND, VOID
from boxseg_jax.data.survey import Summary
from boxseg_jax.errors import InputError

_LISTED = 10  # items that a message spells out
_EQUAL = 4  # names of equal images that are spelt out
_MOST = 0.5  # share from which it is the rule and no slip
# Rounding and loose polygons alone leave a few percent outside.
_UNCOVERED = 0.05
# Extreme clicking and careful drawing both reach 0.85 to 0.9 in the median.
_FIT = 0.7
# Cars fill four fifths of their boxes; a box's corners as a polygon, drawn in pixels, nearly all.
_FILLED = 0.95
_FEWEST = 10  # boxes of a class to say something of it
_THIN = 2.0  # pixels; thinner objects may fall between the samples of a mask


class Finding(NamedTuple):
  """Something that a person should know.

  Attributes:
    is_error: no training with it; else it is a warning.
    text: one sentence.
    items: what it is about, one line each: messages, names of images, shares by class.
    spelt_out: how many of them a message lists.
  """

  is_error: bool
  text: str
  items: tuple[str, ...] = ()
  spelt_out: int = _LISTED

  def message(self) -> str:
    """The sentence, and the first items below it."""
    lines = list(self.items[: self.spelt_out])
    if len(self.items) > self.spelt_out:
      lines.append(f"and {len(self.items) - self.spelt_out} more")
    return "".join([self.text, *(f"\n  {line}" for line in lines)])


class Use(NamedTuple):
  """What the configuration makes of a split.

  Attributes:
    is_learned: a training split.
    boxes_are_learned: box images are learned from.
    masks_are_hidden: some images with masks serve as box images.
  """

  is_learned: bool
  boxes_are_learned: bool
  masks_are_hidden: bool


def refuse_or_report(
  found: Sequence[Finding], *, split: str, report: Callable[[str], None]
) -> None:
  """What a training does with findings.

  Args:
    found: of one split.
    split: its name, for messages.
    report: takes the warnings.

  Raises:
    InputError: all errors, if there are any.
  """
  errors = [f"{split}: {one.message()}" for one in found if one.is_error]
  if errors:
    raise InputError("\n".join(errors))
  for one in found:
    report(f"warning: {split}: {one.message()}")


def unusable(summary: Summary, *, on_bad_image: str, max_bad_fraction: float) -> list[Finding]:
  """Images that cannot be used.

  Args:
    summary: of the split.
    on_bad_image: "stop" makes any an error; "skip" leaves such images out.
    max_bad_fraction: share of the images, in [0, 1], above which skipping stops.

  Raises:
    InputError: on_bad_image is neither.
  """
  if on_bad_image not in ("stop", "skip"):
    raise InputError(f"data.on_bad_image is {on_bad_image!r}, but must be 'stop' or 'skip'")
  if not summary.unusable:
    return []
  text = f"{summary.unusable} of {summary.images} images cannot be used"
  too_many = summary.unusable > max_bad_fraction * summary.images
  if on_bad_image == "stop":
    text += " (data.on_bad_image=skip leaves them out)"
  elif too_many or summary.unusable == summary.images:
    text += f", more than data.max_bad_fraction={max_bad_fraction} allows"
  else:
    # What is left out is told to the last image.
    items = tuple(summary.problems)
    return [Finding(False, f"{text} and are left out", items, spelt_out=len(items))]
  return [Finding(True, text, tuple(summary.problems))]


def judge(summary: Summary, class_names: Sequence[str], use: Use) -> list[Finding]:
  """What there is to say about the split as a whole; see the head of this file.

  Args:
    summary: of the split.
    class_names: by class id, background first.
    use: what the configuration makes of it.

  Returns:
    Errors first.
  """
  found = [
    *_empty_masks(summary),
    *_nothing_to_learn(summary, use),
    *_uncovered(summary, class_names, use),
    *_without_boxes(summary, use),
    *_hidden_masks(summary, use),
    *_loose_boxes(summary),
    *_filled_boxes(summary, class_names),
    *_missing_classes(summary, class_names, use),
    *_void(summary),
    *_thin_objects(summary, class_names),
    *_not_annotated(summary),
    *_duplicates(summary),
  ]
  return sorted(found, key=lambda one: not one.is_error)


def leaks(pairs: Sequence[tuple[str, str]], other: str) -> list[Finding]:
  """Images of a split that are in another one, too.

  Args:
    pairs: of `survey.shared_images`, those of this split last.
    other: name of the other split.
  """
  if not pairs:
    return []
  text = f"{_images(len(pairs))} {_are(len(pairs))} in {other}, too: results on them say nothing"
  items = tuple(one if one == two else f"{two} = {other}/{one}" for one, two in pairs)
  return [Finding(False, f"{text} about new images", items)]


def _empty_masks(summary):
  masks = summary.mask_and_boxes + summary.mask_only
  if masks and not summary.unusable and not _object_pixels(summary):
    # Masks of images without objects are fine where boxes on other images show some.
    meant = not summary.unmasked and VOID not in summary.values and summary.boxes
    text = f"no mask shows an object, of {masks}{_values_hint(summary)}"
    return [Finding(not meant, text, tuple(summary.unmasked))]
  if not summary.unmasked:
    return []
  count, of = len(summary.unmasked), summary.mask_and_boxes
  text = f"the masks of {count} of {of} images with boxes show no object"
  hint = f" ({len(summary.void_alone)} hold {VOID}, void)" if summary.void_alone else ""
  return [Finding(count > _MOST * of, text + hint, tuple(summary.unmasked))]


def _object_pixels(summary):
  return sum(n for value, n in summary.values.items() if value not in (BACKGROUND, VOID))


def _values_hint(summary):
  if VOID not in summary.values:
    return ": the value of every pixel is 0"
  meant = "if a class is meant, data.label_values says which"
  return f": all pixels are 0 or {VOID}; {VOID} means void; {meant}"


def _nothing_to_learn(summary, use):
  masks = summary.mask_and_boxes + summary.mask_only
  if not use.is_learned or masks or summary.boxes or summary.unusable:
    return []
  return [Finding(True, f"none of the {_images(summary.images)} has a mask or a box")]


def _uncovered(summary, class_names, use):
  total = summary.covered_total.total()
  shares = {c: summary.uncovered[c] / n for c, n in summary.covered_total.items()}
  share = summary.uncovered.total() / total if total else 0.0
  worst = max(shares.values(), default=0.0)
  if share <= _UNCOVERED and worst <= _MOST:  # a rare class hardly shows in the whole
    return []
  text = (
    f"{_percent(share)} of the pixels of objects lie outside of all boxes of their class and "
    "would be taught as background in box images: boxes missing, in another order than "
    "[x, y, width, height], or class ids that differ between masks and boxes?"
  )
  by_class = [f"{_name(c, class_names)}: {_percent(s)}" for c, s in sorted(shares.items()) if s]
  images = summary.most_uncovered[:3]
  items = (*by_class, *(f"see {name}" for name in images))
  return [Finding(share > _MOST and use.boxes_are_learned, text, items)]


def _without_boxes(summary, use):
  count = len(summary.unboxed)
  of = count + summary.mask_and_boxes - len(summary.unmasked)
  if not count or not use.boxes_are_learned or not use.masks_are_hidden:
    return []
  text = (
    f"{count} of {of} images with objects in their masks have no box; where data.mask_fraction "
    "hides the mask, all of the image is taught as background"
  )
  return [Finding(count > _MOST * of, text, tuple(summary.unboxed))]


def _hidden_masks(summary, use):
  masks = summary.mask_and_boxes + summary.mask_only
  if not masks or not summary.boxes_only or not use.boxes_are_learned or not use.masks_are_hidden:
    return []
  text = (
    f"{_images(summary.boxes_only)} {_have(summary.boxes_only)} boxes only, and masks of the other "
    f"{masks} are hidden as well; data.mask_fraction=1 learns from every mask there is"
  )
  return [Finding(False, text)]


def _loose_boxes(summary):
  if summary.uncovered.total() > _MOST * summary.covered_total.total():
    return []  # which says it already
  median = float(np.median(summary.fits)) if summary.fits.size else 1.0
  if median >= _FIT:
    return []
  text = "half of the boxes agree with the bounds of what the mask shows in them to an IoU of "
  return [Finding(False, f"{text}{median:.2f} at most: they are loose, or lie elsewhere")]


def _filled_boxes(summary, class_names):
  shares = {
    c: np.mean(fills >= _FILLED) for c, fills in summary.fills.items() if len(fills) >= _FEWEST
  }
  items = [
    f"{_name(label, class_names)}: {_percent(share)} of {len(summary.fills[label])} boxes"
    for label, share in shares.items()
    if share > _MOST
  ]
  if not items:
    return []
  text = (
    "masks fill the boxes of a class: are they the boxes themselves, as polygons of four corners?"
  )
  return [Finding(False, text, tuple(items))]


def _missing_classes(summary, class_names, use):
  missing = [
    name
    for label, name in enumerate(class_names)
    if label and not summary.values[label] and not summary.boxes[label]
  ]
  if not missing:
    return []
  end = "it cannot be learned" if use.is_learned else "it cannot be judged"
  text = f"no mask and no box shows {', '.join(missing)}: {end}"
  return [Finding(False, text.replace("it", "they") if len(missing) > 1 else text)]


def _void(summary):
  if not summary.void_share > _MOST:  # NaN without masks
    return []
  share = _percent(summary.void_share)
  return [Finding(False, f"{share} of the pixels of masks are void ({VOID}) and count nowhere")]


def _thin_objects(summary, class_names):
  items = []
  for label in sorted(set(summary.side_classes.tolist())):
    sides = summary.thin_sides[summary.side_classes == label]
    thin = float(np.mean(sides < _THIN))
    if thin > _MOST:
      items.append(f"{_name(label, class_names)}: {_percent(thin)} of {sides.size} boxes")
  if not items:
    return []
  text = f"most boxes of a class are thinner than {_THIN:g} pixels on data.canvas"
  return [Finding(False, text, tuple(items))]


def _not_annotated(summary):
  if summary.neither <= _MOST * summary.images or summary.neither == summary.images:
    return []
  text = f"{summary.neither} of {summary.images} images have neither mask nor box"
  return [Finding(False, f"{text}: all of them is taught as background")]


def _duplicates(summary):
  if not summary.duplicates:
    return []
  count = sum(len(group) - 1 for group in summary.duplicates)
  items = tuple(map(_equals, summary.duplicates))
  return [Finding(False, f"{_images(count)} {_are(count)} there more than once", items)]


def _equals(names):
  """Names of equal images; of a set made of one image they would fill pages."""
  more = f" (and {len(names) - _EQUAL} more)" if len(names) > _EQUAL else ""
  return " = ".join(names[:_EQUAL]) + more


def _name(label, class_names):
  return class_names[label] if label < len(class_names) else f"label {label}"


def _percent(share):
  return f"{100 * share:.3g} %"


def _images(count):
  return f"{count} image{'' if count == 1 else 's'}"


def _have(count):
  return "has" if count == 1 else "have"


def _are(count):
  return "is" if count == 1 else "are"
