"""GrabCut's pseudo-masks: the arm that the method is compared with."""

import importlib.util

import numpy as np
import pytest

from boxseg_jax.batch import VOID
from boxseg_jax.data import grabcut
from boxseg_jax.errors import InputError


@pytest.fixture(autouse=True)
def _opencv():
  pytest.importorskip("cv2")


def a_scene():
  """A red disc and a blue square on a grey, noisy ground; (image, labels, boxes)."""
  rng = np.random.default_rng(0)
  y, x = np.mgrid[:64, :96] + 0.5
  labels = np.zeros((64, 96), np.uint8)
  labels[(y - 30) ** 2 + (x - 30) ** 2 < 15**2] = 1
  labels[20:40, 60:80] = 2
  colours = np.array([[110, 115, 112], [200, 40, 30], [30, 50, 210]])
  image = np.clip(colours[labels] + rng.normal(0, 8, (64, 96, 3)), 0, 255).astype(np.uint8)
  boxes = np.array([[15 / 64, 15 / 96, 45 / 64, 45 / 96], [16 / 64, 56 / 96, 44 / 64, 84 / 96]])
  return image, labels, boxes


def test_finds_what_differs_in_colour():
  image, labels, boxes = a_scene()
  found = grabcut.pseudo_labels(image, boxes, [1, 2], [False, False])
  assert (found != labels).mean() < 0.01
  filled = np.zeros_like(labels)
  filled[15:45, 15:45], filled[16:44, 56:84] = 1, 2
  assert (filled != labels).mean() > 0.05  # the boxes alone are much further off


def test_a_box_that_grabcut_cannot_divide_is_filled():
  image = np.full((20, 20, 3), 90, np.uint8)
  found = grabcut.pseudo_labels(image, np.array([[0.25, 0.25, 0.3, 0.3]]), [3], [False])
  assert found[5, 5] == 3 and (found > 0).sum() == 1


def test_crowds_are_void_below_boxes():
  image, _, boxes = a_scene()
  crowd = np.array([[0.0, 0.0, 1.0, 0.5]])
  found = grabcut.pseudo_labels(image, np.concatenate([boxes, crowd]), [1, 2, 1], [0, 0, 1])
  assert found[0, 0] == VOID and found[30, 30] == 1 and found[0, 95] == 0


def test_without_opencv_the_extra_is_named(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(InputError, match=r"\[grabcut\]"):
    grabcut.labeller((8, 8))
