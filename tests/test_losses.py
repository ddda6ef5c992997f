"""The paper's formulas against hand numbers, exact integrals and finite differences."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest
from scipy import integrate, special, stats

from boxseg_jax.batch import VOID
from boxseg_jax.losses import bootstrap, crf, objective, projection, uncertainty
from boxseg_jax.losses.boxes import BoxLabels, box_labels, box_maps, object_priors, spans

CANVAS = (4, 6)


def labels_of(boxes, classes, crowd=None, num_classes=3):
  crowd = np.zeros(len(classes), bool) if crowd is None else np.asarray(crowd)
  out = box_labels(
    jnp.asarray([boxes], jnp.float32),
    jnp.asarray([classes], jnp.int32),
    jnp.asarray([crowd]),
    canvas=CANVAS,
    num_classes=num_classes,
  )
  return jax.tree.map(lambda x: np.asarray(x[0]), out)


def in_pixels(ymin, xmin, ymax, xmax):
  return (ymin / 4, xmin / 6, ymax / 4, xmax / 6)


class TestBoxes:
  def test_smaller_box_wins_and_both_are_allowed(self):
    found = labels_of([in_pixels(0, 0, 4, 4), in_pixels(1, 1, 3, 3)], [1, 2])
    expected = np.zeros(CANVAS, int)
    expected[:, :4] = 1
    expected[1:3, 1:3] = 2
    np.testing.assert_array_equal(found.box_class, expected)
    np.testing.assert_array_equal(found.inside, expected > 0)
    np.testing.assert_array_equal(found.allowed[2, 2], [True, True, True])
    np.testing.assert_array_equal(found.allowed[0, 0], [True, True, False])
    np.testing.assert_array_equal(found.allowed[0, 5], [True, False, False])

  def test_order_of_boxes_makes_no_difference(self):
    boxes, classes = (
      [in_pixels(0, 0, 4, 4), in_pixels(1, 1, 3, 3), in_pixels(0, 3, 2, 6)],
      [1, 2, 1],
    )
    one = labels_of(boxes, classes)
    other = labels_of(boxes[::-1], classes[::-1])
    for a, b in zip(one, other, strict=True):
      np.testing.assert_array_equal(a, b)

  def test_padding_covers_nothing(self):
    found = labels_of([in_pixels(0, 0, 4, 6)], [0])
    assert not found.inside.any() and not found.box_class.any()

  def test_maps_are_filled_boxes_and_tents_by_class(self):
    boxes = jnp.array([[in_pixels(0, 0, 4, 2), in_pixels(0, 2, 4, 6), in_pixels(0, 0, 4, 6)]])
    given = boxes.astype(jnp.float32), jnp.array([[1, 1, 2]]), jnp.array([[False, False, True]])
    maps = box_maps(*given, box_labels(*given, canvas=CANVAS, num_classes=3).allowed)
    filled, tent, other_filled, other_tent = np.moveaxis(np.asarray(maps[0]), -1, 0)
    np.testing.assert_array_equal(filled, np.ones(CANVAS))
    # Boxes that touch fall to 0 between them: rows 1/4 and 3/4, columns by hand.
    columns = np.array([0.5, 0.5, 0.25, 0.75, 0.75, 0.25])
    np.testing.assert_allclose(tent, np.outer([0.25, 0.75, 0.75, 0.25], columns), atol=1e-6)
    assert not other_filled.any() and not other_tent.any()  # a crowd is no box

  def test_crowd_gives_way_to_a_box(self):
    found = labels_of([in_pixels(0, 0, 4, 4), in_pixels(0, 0, 4, 2)], [1, 1], crowd=[True, False])
    assert found.inside[:, :2].all() and not found.inside[:, 2:].any()
    assert found.crowd[:, 2:4].all() and not found.crowd[:, :2].any()

  @pytest.mark.parametrize("num_classes", [2, 4])
  def test_against_painting_box_after_box(self, num_classes):
    rng = np.random.default_rng(num_classes)
    low = rng.uniform(0, 0.9, (30, 2))
    high = low + rng.uniform(0.01, 0.5, (30, 2))
    boxes = np.concatenate([low, high], axis=1).astype(np.float32)
    classes = rng.integers(1, num_classes, 30)
    found = labels_of(boxes, classes, num_classes=num_classes)
    rows, columns = (np.arange(4) + 0.5) / 4, (np.arange(6) + 0.5) / 6
    painted = np.zeros(CANVAS, int)
    allowed = np.zeros((*CANVAS, num_classes), bool)
    allowed[..., 0] = True
    for i in np.argsort(-(high - low).prod(axis=1), kind="stable"):
      y = (rows >= boxes[i, 0]) & (rows < boxes[i, 2])
      x = (columns >= boxes[i, 1]) & (columns < boxes[i, 3])
      painted[np.ix_(y, x)] = classes[i]
      allowed[..., classes[i]] |= y[:, None] & x[None, :]
    np.testing.assert_array_equal(found.box_class, painted)
    np.testing.assert_array_equal(found.allowed, allowed)


class TestUncertainty:
  @pytest.mark.parametrize("mu", [-4.0, -1.0, 0.0, 0.5, 3.0])
  @pytest.mark.parametrize("sigma", [0.0, 0.5, 1.0, 3.0, 10.0])
  def test_expected_probability_is_near_the_exact_integral(self, mu, sigma):
    def integrand(z):
      return special.expit(mu + sigma * z) * stats.norm.pdf(z)

    exact, _ = integrate.quad(integrand, -12, 12, limit=200)
    logits = uncertainty.class_logits(jnp.array([mu]))
    p = jax.nn.softmax(uncertainty.expected_logits(logits, jnp.array(sigma)))[1]
    # MacKay's approximation itself is off by at most 0.02.
    assert abs(float(p) - exact) < 0.02
    if sigma == 0 or mu == 0:
      assert abs(float(p) - exact) < 1e-6

  def test_expected_probability_is_near_monte_carlo_for_two_classes(self):
    draws = np.random.default_rng(0).normal(1.2, 2.0, 400_000)
    p = jax.nn.sigmoid(1.2 * uncertainty.certainty(jnp.array(2.0)))
    assert abs(float(p) - special.expit(draws).mean()) < 0.01

  def test_kappa_by_hand(self):
    np.testing.assert_allclose(
      uncertainty.kappa(jnp.array([0.0, np.sqrt(8 / np.pi)])), [1, np.sqrt(2)], rtol=1e-6
    )
    np.testing.assert_allclose(uncertainty.certainty(jnp.array(0.0)), 1.0)

  def test_binary_and_two_class_forms_agree(self):
    mu = jnp.array([[-2.0], [0.3], [5.0]])
    probability = jax.nn.softmax(uncertainty.class_logits(mu))[:, 1]
    np.testing.assert_allclose(probability, special.expit(mu[:, 0]), rtol=1e-6)

  def test_sigma_lowers_the_loss_where_the_label_is_wrong_and_raises_it_where_right(self):
    target = jnp.array([0.0, 1.0])

    def loss(sigma, mu):
      logits = uncertainty.class_logits(jnp.array([mu]))
      return uncertainty.cross_entropy(uncertainty.expected_logits(logits, sigma), target)

    assert jax.grad(loss)(1.0, -3.0) < 0 < jax.grad(loss)(1.0, 3.0)

  def test_pull_on_mu_fades_as_one_over_kappa(self):
    def loss(mu, sigma):
      logits = uncertainty.class_logits(mu[None])
      return uncertainty.cross_entropy(
        uncertainty.expected_logits(logits, sigma), jnp.array([0.0, 1.0])
      )

    at_zero = jnp.array(0.0)
    pulls = [float(jax.grad(loss)(at_zero, jnp.array(s))) for s in (0.0, 3.0)]
    np.testing.assert_allclose(pulls[1] / pulls[0], 1 / uncertainty.kappa(3.0), rtol=1e-5)


def test_unweighted_odds_are_learned_odds_over_the_weights():
  mu = jnp.array([[1.0], [-2.0]])
  odds = jnp.exp(mu[:, 0])
  np.testing.assert_allclose(
    jnp.exp(uncertainty.unweighted(mu, (0.5, 2.0))[:, 0]), odds / 4.0, rtol=1e-6
  )
  both = uncertainty.unweighted(uncertainty.class_logits(mu), (0.5, 2.0))
  np.testing.assert_allclose(jnp.exp(both[:, 1] - both[:, 0]), odds / 4.0, rtol=1e-6)
  three = jnp.array([[0.3, -1.0, 2.0]])
  np.testing.assert_array_equal(uncertainty.unweighted(three, (1, 1, 1)), three)


class TestBootstrap:
  boxes = staticmethod(
    lambda: jax.tree.map(lambda x: x[None], labels_of([in_pixels(0, 0, 4, 3)], [2]))
  )

  def test_soft_target_by_hand(self):
    logits = jnp.zeros((1, *CANVAS, 3)).at[..., 1].set(9.0)  # class 1 is not allowed
    sigma = jnp.full((1, *CANVAS), np.sqrt(3 * 8 / np.pi))  # kappa = 2, certainty 1/2
    target = bootstrap.targets("soft", logits, sigma, self.boxes(), strength=1.0)
    np.testing.assert_allclose(target[0, 0, 0], [0.25, 0.0, 0.75], atol=1e-6)

  def test_strength_fades_in(self):
    logits = jnp.zeros((1, *CANVAS, 3)).at[..., 0].set(50.0)
    sigma = jnp.full((1, *CANVAS), 1e6)
    half = bootstrap.targets("soft", logits, sigma, self.boxes(), strength=0.5)
    np.testing.assert_allclose(half[0, 0, 0], [0.5, 0.0, 0.5], atol=1e-4)

  def test_hard_target_is_the_best_allowed_class(self):
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(1, *CANVAS, 3)), jnp.float32)
    target = bootstrap.targets("hard", logits, jnp.ones((1, *CANVAS)), self.boxes(), strength=1.0)
    expected = np.where(logits[0, :, :3, 0] > logits[0, :, :3, 2], 0, 2)
    np.testing.assert_array_equal(np.argmax(target[0, :, :3], axis=-1), expected)
    assert set(np.unique(target)) == {0.0, 1.0}

  def test_predicted_target_is_the_prediction_among_allowed_classes(self):
    logits = jnp.zeros((1, *CANVAS, 3)).at[..., 1].set(9.0).at[..., 2].set(np.log(3.0))
    sigma = jnp.full((1, *CANVAS), 2.0)
    target = bootstrap.targets("predicted", logits, sigma, self.boxes(), strength=1.0)
    np.testing.assert_allclose(target[0, 0, 0], [0.25, 0.0, 0.75], atol=1e-6)

  def test_no_gradient_through_the_target(self):
    def total(logits):
      return bootstrap.targets("soft", logits, jnp.ones((1, *CANVAS)), self.boxes(), strength=1.0)[
        ..., 0
      ].sum()

    assert not np.any(jax.grad(total)(jnp.ones((1, *CANVAS, 3))))

  @pytest.mark.parametrize(
    ("step", "expected"), [(9, 0.0), (10, 0.25), (12, 0.75), (13, 1.0), (99, 1.0)]
  )
  def test_ramp(self, step, expected):
    assert float(bootstrap.strength_at(jnp.array(step), start=10, ramp=4)) == expected


def a_batch(num_classes=3, seed=0):
  """Two images: the first with a mask, the second with boxes, one of them a crowd."""
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, num_classes, (2, *CANVAS))
  labels[0, 0, :2] = VOID
  labels[1] = VOID
  boxes = np.zeros((2, 2, 4), np.float32)
  boxes[1] = [in_pixels(0, 0, 2, 2), in_pixels(2, 4, 4, 6)]
  visible = np.ones((2, *CANVAS), bool)
  visible[:, 3] = False
  return {
    "labels": jnp.asarray(labels, jnp.int32),
    "boxes": jnp.asarray(boxes),
    "box_classes": jnp.asarray([[0, 0], [1, 1]], jnp.int32),
    "box_is_crowd": jnp.asarray([[False, False], [False, True]]),
    "has_mask": jnp.asarray([True, False]),
    "valid": jnp.asarray([True, True]),
    "visible": jnp.asarray(visible),
    "image": jnp.asarray(np.random.default_rng(6).uniform(0, 1, (2, *CANVAS, 3)), jnp.float32),
  }


def run_objective(batch, logits, sigma, *, inside_boxes="uncertainty", weights=(1.0, 1.0, 1.0)):
  boxes = objective.read_boxes(batch, 3)
  target = jax.nn.one_hot(boxes.box_class, 3)
  loss = {"inside_boxes": inside_boxes, "class_weights": jnp.array(weights)}
  return objective.objective(logits, sigma, batch, boxes, target, **loss)


def test_void_crowds_and_padding_have_no_role():
  batch = a_batch()
  roles = objective.pixel_roles(batch, objective.read_boxes(batch, 3))
  of_mask, of_boxes = np.ones(CANVAS, bool), np.ones(CANVAS, bool)
  of_mask[0, :2] = of_mask[3] = False  # void; beyond the image
  of_boxes[2:, 4:] = of_boxes[3] = False  # a crowd
  np.testing.assert_array_equal(roles.in_mask, [of_mask, np.zeros(CANVAS, bool)])
  inside = np.zeros(CANVAS, bool)
  inside[:2, :2] = True
  np.testing.assert_array_equal(roles.inside_box, [np.zeros(CANVAS, bool), inside])
  np.testing.assert_array_equal(roles.outside_boxes, [np.zeros(CANVAS, bool), of_boxes & ~inside])


class TestObjective:
  rng = np.random.default_rng(5)
  logits = jnp.asarray(rng.normal(size=(2, *CANVAS, 3)), jnp.float32)
  sigma = jnp.asarray(rng.uniform(0.5, 4, (2, *CANVAS)), jnp.float32)

  def test_against_pixel_by_pixel_sums(self):
    batch, weights = a_batch(), np.array([1.0, 2.0, 3.0])
    expected = {"loss_mask": 0.0, "loss_outside": 0.0, "loss_box": 0.0, "weight": 0.0}
    for image, row, column in np.ndindex(2, *CANVAS):
      mu, s = np.array(self.logits[image, row, column]), float(self.sigma[image, row, column])
      if row == 3:  # shows no image
        continue
      if image == 0:
        term, label = "loss_mask", int(batch["labels"][0, row, column])
        if label == VOID:
          continue
      elif row < 2 and column < 2:
        term, label, mu = "loss_box", 1, mu / np.sqrt(1 + np.pi * s * s / 8)
      elif row >= 2 and column >= 4:  # crowd
        continue
      else:
        term, label = "loss_outside", 0
      expected[term] -= weights[label] * special.log_softmax(mu)[label]
      expected["weight"] += weights[label]
    total, sums = run_objective(batch, self.logits, self.sigma, weights=weights)
    for name, value in expected.items():
      np.testing.assert_allclose(sums[name], value, rtol=1e-5)
    np.testing.assert_allclose(
      total, sum(v for k, v in expected.items() if k != "weight"), rtol=1e-5
    )

  def test_sigma_learns_inside_boxes_only(self):
    gradient = jax.grad(lambda s: run_objective(a_batch(), self.logits, s)[0])(self.sigma)
    touched = np.asarray(gradient) != 0
    expected = np.zeros((2, *CANVAS), bool)
    expected[1, :2, :2] = True
    np.testing.assert_array_equal(touched, expected)

  def test_boxes_at_their_word_do_not_know_sigma(self):
    one, _ = run_objective(a_batch(), self.logits, self.sigma, inside_boxes="label")
    other, _ = run_objective(a_batch(), self.logits, 5 * self.sigma, inside_boxes="label")
    assert one == other
    assert one != run_objective(a_batch(), self.logits, self.sigma)[0]

  def test_separate_losses_of_mu_and_sigma_by_hand(self):
    batch, weights = a_batch(), np.array([1.0, 2.0, 3.0])
    boxes = objective.read_boxes(batch, 3)
    target = np.random.default_rng(2).dirichlet(np.ones(3), (2, *CANVAS))
    _, sums = objective.objective(
      self.logits,
      self.sigma,
      batch,
      boxes,
      jnp.asarray(target, jnp.float32),
      inside_boxes="separate",
      class_weights=jnp.asarray(weights),
    )
    mu, sigma, t = (np.asarray(x)[1, :2, :2] for x in (self.logits, self.sigma, target))
    kappa = np.sqrt(1 + np.pi * sigma**2 / 8)[..., None]
    of_mu = -np.sum(weights * t * special.log_softmax(mu, axis=-1))
    of_sigma = -np.sum(special.log_softmax(mu / kappa, axis=-1)[..., 1])
    assert sums["loss_box"] == pytest.approx(of_mu, rel=1e-5)
    assert sums["loss_sigma"] == pytest.approx(of_sigma, rel=1e-5)

  def test_separate_sigma_moves_no_mu(self):
    def total(logits, sigma):
      return run_objective(a_batch(), logits, sigma, inside_boxes="separate")[0]

    def plain(logits):
      return run_objective(a_batch(), logits, self.sigma, inside_boxes="label")[0]

    of_mu, of_sigma = jax.grad(total, argnums=(0, 1))(self.logits, self.sigma)
    np.testing.assert_allclose(of_mu, jax.grad(plain)(self.logits), rtol=1e-5)
    inside = np.zeros((2, *CANVAS), bool)
    inside[1, :2, :2] = True
    np.testing.assert_array_equal(np.asarray(of_sigma) != 0, inside)

  def test_padding_examples_count_nowhere(self):
    batch = a_batch() | {"valid": jnp.asarray([True, False])}
    _, sums = run_objective(batch, self.logits, self.sigma)
    assert sums["loss_box"] == 0 and sums["loss_outside"] == 0 and sums["loss_mask"] > 0

  def test_jit_equals_eager(self):
    eager = run_objective(a_batch(), self.logits, self.sigma)
    compiled = jax.jit(run_objective)(a_batch(), self.logits, self.sigma)
    np.testing.assert_allclose(eager[0], compiled[0], rtol=1e-6)

  def test_gradient_equals_finite_differences(self):
    def total(logits, sigma):
      return run_objective(a_batch(), logits, sigma)[0]

    jax.test_util.check_grads(
      total, (self.logits, self.sigma), order=1, modes=["rev"], eps=1e-2, rtol=2e-2
    )

  def test_extreme_values_give_finite_gradients(self):
    for scale, sigma in [(1e4, 0.0), (1e4, 1e6), (0.0, 1e6)]:
      grads = jax.grad(lambda l, s: run_objective(a_batch(), l, s)[0], argnums=(0, 1))(
        scale * self.logits, jnp.full_like(self.sigma, sigma)
      )
      assert all(np.isfinite(g).all() for g in grads)
      assert np.abs(grads[0]).max() <= 1.0 + 1e-6  # softmax minus target


def test_teacher_loss_counts_known_mask_pixels():
  logits = jnp.zeros((2, 1, 2, 3)).at[:, :, :, 1].set(2.0)
  labels = jnp.array([[[1, VOID]], [[1, 1]]])
  in_mask = jnp.array([[[True, False]], [[False, False]]])
  weights = jnp.array([1.0, 3.0, 1.0])
  loss = partial(objective.teacher_loss, logits, labels, in_mask, class_weights=weights)
  assert loss() == pytest.approx(3 * (np.log(2 + np.exp(2.0)) - 2.0), rel=1e-6)
  assert loss(prior=jnp.full((2, 1, 2), 0.5)) == pytest.approx(float(loss()), rel=1e-6)
  likely = 3 * (np.log(1 / 9 + np.exp(2.0) + 1) - 2.0)
  assert loss(prior=jnp.full((2, 1, 2), 0.9)) == pytest.approx(likely, rel=1e-5)


class TestProjection:
  """The terms of BoxInst against their formulas, written out."""

  rng = np.random.default_rng(8)
  image = rng.uniform(0, 1, (6, 7, 3))
  probabilities = special.softmax(rng.normal(size=(6, 7, 3)), axis=-1)

  def test_projection_is_dice_of_maxima_along_rows_and_columns(self):
    rows, columns = np.zeros((2, 6), bool), np.zeros((2, 7), bool)
    rows[0, 1:4], columns[0, 2:7] = True, True
    rows[1, 0:6], columns[1, 0:2] = True, True
    classes, weights = np.array([2, 1]), np.array([1.0, 3.0])
    expected = 0.0
    for n in range(2):
      mask = self.probabilities[:, :, classes[n]][rows[n]][:, columns[n]]
      for values in (mask.max(1), mask.max(0)):
        dice = 2 * values.sum() / ((values**2).sum() + len(values))
        expected += weights[n] * (1 - dice) / weights.sum()
    given = self.probabilities, rows, columns, classes, weights
    (found,) = projection.projection_loss(*(jnp.asarray(x)[None] for x in given))
    assert float(found) == pytest.approx(expected, rel=1e-5)

  def test_a_mask_that_touches_every_row_and_column_has_no_projection_loss(self):
    diagonal = np.stack([1 - np.eye(4), np.eye(4)], axis=-1)
    everywhere = jnp.ones((1, 1, 4), bool)
    (loss,) = projection.projection_loss(
      jnp.asarray(diagonal)[None], everywhere, everywhere, jnp.array([[1]]), jnp.array([[1.0]])
    )
    assert float(loss) == pytest.approx(0.0, abs=1e-6)

  def test_gradient_of_a_projection_is_that_of_its_maxima(self):
    """Against what differentiating the maxima themselves gives, of boxes that overlap."""
    logits = jnp.asarray(self.rng.normal(size=(2, 6, 7, 3)), jnp.float32)
    rows, columns = self.rng.uniform(size=(2, 5, 6)) < 0.6, self.rng.uniform(size=(2, 5, 7)) < 0.6
    classes = jnp.asarray(self.rng.integers(1, 3, (2, 5)))
    weights = jnp.asarray(self.rng.uniform(0, 2, (2, 5)), jnp.float32)

    def by_maxima(logits):
      total = 0.0
      images = jax.nn.softmax(logits), rows, columns, classes, weights
      for p, r, c, k, w in zip(*images, strict=True):
        of_box = jnp.moveaxis(p, -1, 0)[k] * r[:, :, None] * c[:, None, :]
        for v, held in ((of_box.max(2), r), (of_box.max(1), c)):
          dice = 2 * v.sum(1) / ((v**2).sum(1) + held.sum(1))
          total += ((1 - dice) * w).sum() / w.sum()
      return total

    def ours(logits):
      p = jax.nn.softmax(logits)
      return projection.projection_loss(p, rows, columns, classes, weights).sum()

    value, gradient = jax.value_and_grad(ours)(logits)
    expected, slope = jax.value_and_grad(by_maxima)(logits)
    assert float(value) == pytest.approx(float(expected), rel=1e-5)
    np.testing.assert_allclose(gradient, slope, rtol=1e-4, atol=1e-6)

  def test_peaks_of_probabilities_that_hardly_differ(self):
    """Largest but for 2^-13 of its size, in the box's rows and columns, of its class."""
    p = self.rng.uniform(0, 1, (300, 1000, 2)).astype(np.float32)
    p[150:] = 0.5 + p[150:] / 1e4
    rows, columns = np.zeros((1, 300), bool), np.zeros((1, 1000), bool)
    rows[0, 20:290], columns[0, 30:900] = True, True
    given = jnp.asarray(p), jnp.asarray(rows), jnp.asarray(columns), jnp.array([1])
    column, row = (np.asarray(x)[0] for x in projection._peaks(*given))
    box = p[20:290, 30:900, 1]
    assert columns[0, column[20:290]].all() and rows[0, row[30:900]].all()
    assert (p[np.arange(20, 290), column[20:290], 1] >= box.max(1) * (1 - 2**-13)).all()
    assert (p[row[30:900], np.arange(30, 900), 1] >= box.max(0) * (1 - 2**-13)).all()

  def test_affinity_pair_by_pair(self):
    # Lightness of 21.2, 21.5, 23.0, 25.9 and 91.1: steps below 2.4 are of like colours.
    image = np.repeat(self.rng.choice([0.2, 0.202, 0.215, 0.24, 0.9], (6, 7, 1)), 3, axis=-1)
    inside = np.zeros((6, 7), bool)
    inside[2:5, 1:4] = True
    colours = np.asarray(projection.lab(jnp.asarray(image)))
    total, pairs = 0.0, 0
    for y, x in np.ndindex(6, 7):
      for dy, dx in ((0, 2), (2, 0), (2, 2), (2, -2)):
        v, u = y + dy, x + dx
        if not (0 <= v < 6 and 0 <= u < 7) or not (inside[y, x] or inside[v, u]):
          continue
        pairs += 1
        if np.exp(-np.linalg.norm(colours[y, x] - colours[v, u]) / 2) >= 0.3:
          total -= np.log(self.probabilities[y, x] @ self.probabilities[v, u])
    found = projection.affinity_loss(
      jnp.asarray(self.probabilities), jnp.asarray(image), jnp.asarray(inside)
    )
    assert total > 0 and float(found) == pytest.approx(total / pairs, rel=1e-4)

  def test_affinity_of_one_pair(self):
    p, inside = self.probabilities[:1, :3], np.array([[True, False, False]])
    found = projection.affinity_loss(jnp.asarray(p), jnp.zeros((1, 3, 3)), jnp.asarray(inside))
    assert float(found) == pytest.approx(-np.log(p[0, 0] @ p[0, 2]), rel=1e-5)

  @pytest.mark.parametrize(
    ("rgb", "expected"),
    # CIE's own values for sRGB under D65.
    [((1, 1, 1), (100, 0, 0)), ((1, 0, 0), (53.24, 80.09, 67.20)), ((0, 0, 0), (0, 0, 0))],
  )
  def test_lab(self, rgb, expected):
    found = projection.lab(jnp.asarray(rgb, jnp.float32))
    np.testing.assert_allclose(found, expected, atol=0.05)

  def test_lab_by_the_definitions_of_srgb_and_cie(self):
    """Dark colours, where both curves are lines, among them; CIE's constants as fractions."""
    rng = np.random.default_rng(0)
    image = np.concatenate([rng.uniform(0, top, (8, 9, 3)) for top in (0.05, 0.2, 1.0)])
    linear = np.where(image <= 0.04045, image / 12.92, ((image + 0.055) / 1.055) ** 2.4)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = linear @ np.transpose(to_xyz) / [0.9505, 1.0, 1.089]
    line = (29 / 6) ** 2 / 3 * xyz + 4 / 29
    x, y, z = np.moveaxis(np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), line), -1, 0)
    expected = np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)
    found = projection.lab(jnp.asarray(image, jnp.float32))
    np.testing.assert_allclose(found, expected, atol=0.05)

  def test_an_image_weighs_like_the_pixels_inside_its_boxes(self):
    logits = jnp.asarray(np.random.default_rng(5).normal(size=(2, *CANVAS, 3)), jnp.float32)
    batch, class_weights = a_batch(), jnp.array([1.0, 1.0, 3.0])
    boxes = objective.read_boxes(batch, 3)
    # Each of the four pixels inside weighs 0.25 + 0.25 + 0.5 * 3.
    target = jnp.full((2, *CANVAS, 3), jnp.array([0.25, 0.25, 0.5]))

    def run(logits):
      weighing = {"class_weights": class_weights, "affinity_weight": 0.5}
      return objective.boxinst_loss(logits, batch, boxes, target, **weighing)

    spans = jnp.zeros((1, 4), bool).at[:, :2].set(True), jnp.zeros((1, 6), bool).at[:, :2].set(True)
    p = jax.nn.softmax(logits[1])
    inside = spans[0][0][:, None] & spans[1][0]
    of_box = *(x[None] for x in spans), jnp.array([[1]]), jnp.ones((1, 1))
    (expected,) = 8 * projection.projection_loss(p[None], *of_box)
    expected += 8 * 0.5 * projection.affinity_loss(p, batch["image"][1], inside)
    assert float(run(logits)) == pytest.approx(float(expected), rel=1e-5)
    grads = jax.grad(run)(logits)
    assert np.isfinite(grads).all() and np.abs(grads[1, :2, :2]).max() > 0
    assert not np.any(np.asarray(grads[0]))  # the mask image


class TestObjectPriors:
  """How likely a pixel is of an object, by its place in its boxes."""

  def _priors(self, boxes, classes, masks, crowd=None, canvas=(8, 8)):
    crowd = np.zeros((1, len(classes)), bool) if crowd is None else np.array([crowd])
    return np.array(
      object_priors(
        np.float32([boxes]), np.int32([classes]), crowd, jnp.asarray(masks), canvas=canvas
      )
    )[0]

  def test_parts_of_the_box_and_nothing_outside(self):
    masks = np.random.default_rng(0).uniform(0.1, 0.9, (2, 4, 4)).astype(np.float32)
    priors = self._priors([[0.25, 0, 0.75, 0.5]], [1], masks)
    np.testing.assert_allclose(priors[2:6, :4], masks[1], rtol=1e-5)
    priors[2:6, :4] = 0
    assert (priors == 0).all()

  def test_linear_between_parts_in_the_logarithm_of_background(self):
    masks = np.float32([[[0.5, 0.5], [0.5, 0.5]], [[0.2, 0.6], [0.2, 0.6]]])
    row = self._priors([[0, 0, 1, 1]], [1], masks)[3]
    places = np.clip((np.arange(8) + 0.5) / 8 * 2 - 0.5, 0, 1)
    np.testing.assert_allclose(row, 1 - 0.8 ** (1 - places) * 0.4**places, rtol=1e-5)

  def test_overlapping_boxes_are_independent(self):
    masks = np.float32([[[0.0]], [[0.5]], [[0.8]]])
    priors = self._priors([[0, 0, 1, 1], [0, 0, 0.5, 1]], [1, 2], masks)
    np.testing.assert_allclose(priors[:4], 0.9, rtol=1e-5)
    np.testing.assert_allclose(priors[4:], 0.5, rtol=1e-5)

  def test_padding_and_crowds_say_nothing(self):
    masks = np.float32([[[0.9]], [[0.5]]])
    boxes = [[0, 0, 1, 1], [0, 0, 1, 1]]
    assert (self._priors(boxes, [0, 1], masks, crowd=[False, True]) == 0).all()


class TestPosterior:
  """The prediction and the place in the box, by Bayes' rule."""

  labels = jax.tree.map(lambda x: x[None], labels_of([in_pixels(0, 0, 2, 2)], [1]))
  prior = jnp.full((1, *CANVAS), 0.8)

  def test_odds_multiply(self):
    # 3 + 1 for objects and 1 for the background, times 0.8 / 0.2.
    logits = jnp.zeros((1, *CANVAS, 3)).at[..., 1].set(np.log(3.0))
    target = bootstrap.targets(
      "posterior",
      logits,
      jnp.ones((1, *CANVAS)),
      self.labels,
      strength=1.0,
      prior=self.prior,
      smooth=lambda logits: logits,
      fill=lambda p: p,
    )
    np.testing.assert_allclose(target[0, 0, 0], [1 / 17, 16 / 17, 0.0], rtol=1e-5)

  def test_before_it_starts_the_target_is_the_prior(self):
    target = bootstrap.targets(
      "posterior",
      jnp.full((1, *CANVAS, 3), 7.0),
      jnp.ones((1, *CANVAS)),
      self.labels,
      strength=0.0,
      prior=self.prior,
      smooth=lambda logits: logits,
      fill=lambda p: p,
    )
    np.testing.assert_allclose(target[0, 0, 0], [0.2, 0.8, 0.0], rtol=1e-5)
    np.testing.assert_allclose(target, bootstrap.box_target(self.labels, 3, self.prior), rtol=1e-5)

  def test_a_certain_prior_can_be_overruled(self):
    moved = bootstrap.with_prior(jnp.zeros((2, 3)), jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(moved[:, 0], [np.log(97 / 3), -np.log(97 / 3)], rtol=1e-5)


class TestMeanField:
  """Neighbours of like colour, written out."""

  rng = np.random.default_rng(4)
  image = rng.uniform(0.0, 0.1, (1, 5, 6, 3))
  logits = rng.normal(size=(1, 5, 6, 3))

  def test_pixel_by_pixel(self):
    heard = self.logits[0]
    for _ in range(crf.ITERATIONS):
      p = special.softmax(heard, axis=-1)
      heard = np.array(
        [[self.logits[0, y, x] + self._message(p, y, x) for x in range(6)] for y in range(5)]
      )
    got = crf.mean_field(
      jnp.asarray(self.logits, jnp.float32), jnp.asarray(self.image, jnp.float32)
    )
    np.testing.assert_allclose(got[0], heard, rtol=1e-4, atol=1e-4)

  def _message(self, p, y, x):
    message, total = np.zeros(3), 1e-3
    for v, u in itertools.product(range(y - 2, y + 3), range(x - 2, x + 3)):
      if (v, u) != (y, x) and 0 <= v < 5 and 0 <= u < 6:
        colours = np.sum((self.image[0, y, x] - self.image[0, v, u]) ** 2)
        place = (v - y) ** 2 + (u - x) ** 2
        weight = np.exp(-colours / (2 * 0.03**2) - place / (2 * 1.5**2))
        message, total = message + weight * p[v, u], total + weight
    return 6.0 * message / total

  def test_one_doubtful_pixel_follows_its_colour(self):
    image = np.zeros((1, 7, 8, 3), np.float32)
    image[:, :, 4:] = 0.5
    logits = np.zeros((1, 7, 8, 2), np.float32)
    logits[:, :, 4:, 1], logits[:, :, :4, 1] = 4.0, -4.0
    logits[0, 3, 3, 1], logits[0, 3, 4, 1] = 1.0, -1.0  # on either side of the edge
    got = np.argmax(crf.mean_field(jnp.asarray(logits), jnp.asarray(image)), axis=-1)[0]
    assert (got[:, :4] == 0).all() and (got[:, 4:] == 1).all()

  def test_what_cannot_be_stays_so(self):
    logits = jnp.asarray(self.logits, jnp.float32).at[..., 2].set(-jnp.inf)
    got = jax.nn.softmax(crf.mean_field(logits, jnp.asarray(self.image, jnp.float32)))
    assert (got[..., 2] == 0).all() and np.isfinite(got).all()


class TestFillBoxes:
  """Targets, moved until boxes are filled as usual."""

  BOXES = np.float32([[[0.1, 0.1, 0.5, 0.4], [0.5, 0.5, 0.9, 0.9], [0, 0, 1, 1]]])
  CLASSES = np.int32([[1, 2, 0]])  # the last is padding
  PIXELS = (0, slice(4, 20), slice(4, 16)), (0, slice(20, 36), slice(20, 36))

  def _moved(self, background, low, high, crowd=(False, False, False)):
    """Random targets with much or little background, the same moved, and what is inside."""
    logits = 3 * np.random.default_rng(0).normal(size=(1, 40, 40, 3)) + [background, 0, 0]
    crowd = np.array([crowd])
    labels = box_labels(self.BOXES, self.CLASSES, crowd, canvas=(40, 40), num_classes=3)
    given = jax.nn.softmax(jnp.where(labels.allowed, jnp.asarray(logits, jnp.float32), -jnp.inf))
    band = (np.full((1, 3), low), np.full((1, 3), high))
    real = (self.CLASSES > 0) & ~crowd
    moved = bootstrap.fill_boxes(given, spans(self.BOXES, (40, 40)), band, real)
    np.testing.assert_allclose(moved.sum(-1), 1.0, atol=1e-5)
    return tuple(map(np.asarray, (given, moved, labels.inside)))

  @pytest.mark.parametrize(("background", "end"), [(8.0, 0.5), (-8.0, 0.7)])
  def test_a_box_is_filled_to_the_nearer_end_of_its_band(self, background, end):
    _, moved, _ = self._moved(background, 0.5, 0.7)
    for pixels, label in zip(self.PIXELS, (1, 2), strict=True):
      assert moved[pixels][..., label].mean() == pytest.approx(end, abs=0.02)

  def test_what_is_usual_and_what_is_outside_stays_as_it_is(self):
    given, moved, inside = self._moved(0.0, 0.05, 0.95)
    np.testing.assert_array_equal(moved, given)
    given, moved, inside = self._moved(0.0, 0.98, 0.99)
    np.testing.assert_array_equal(moved[~inside], given[~inside])
    assert (moved[inside][:, 0] < given[inside][:, 0]).all()

  def test_crowds_move_nothing(self):
    given, moved, _ = self._moved(8.0, 0.5, 0.7, crowd=(False, True, False))
    first, second = self.PIXELS
    np.testing.assert_array_equal(moved[second], given[second])
    assert moved[first][..., 1].mean() == pytest.approx(0.5, abs=0.02)

  def test_log_odds_move_by_a_constant(self):
    given, moved, _ = self._moved(3.0, 0.5, 0.7)
    for pixels in self.PIXELS:
      odds = [np.log(1 - p[pixels][..., 0]) - np.log(p[pixels][..., 0]) for p in (given, moved)]
      usual = np.abs(odds[0]) < 8  # beyond, float32 has no digits left
      np.testing.assert_allclose(np.ptp((odds[1] - odds[0])[usual]), 0.0, atol=2e-2)

  def test_each_class_has_its_own_band(self):
    given, _, _ = self._moved(8.0, 0.5, 0.7)
    crowd = np.zeros((1, 3), bool)
    batch = {"boxes": self.BOXES, "box_classes": self.CLASSES, "box_is_crowd": crowd}
    moved = objective.fill_boxes(given, batch, [(0.9, 0.9), (0.5, 0.7), (0.3, 0.4)])
    for pixels, label, share in zip(self.PIXELS, (1, 2), (0.5, 0.3), strict=True):
      assert moved[pixels][..., label].mean() == pytest.approx(share, abs=0.02)

  @pytest.mark.parametrize("background", [1e4, -1e4])
  def test_extreme_targets_stay_finite(self, background):
    _, moved, _ = self._moved(background, 0.5, 0.7)
    assert np.isfinite(moved).all()


def test_what_speaks_for_any_object_speaks_for_those_that_are_there():
  """In the box of class 3 a likely object of class 2 is as likely an object of class 3."""
  logits = jnp.array([0.0, -3.0, 2.0, -1.0])
  objects = jax.nn.softmax(logits)[1:].sum()
  one = jax.nn.softmax(bootstrap.of_some_object(logits, jnp.array([True, False, False, True])))
  np.testing.assert_allclose(one, [1 - objects, 0, 0, objects], atol=1e-6)
  two = jax.nn.softmax(bootstrap.of_some_object(logits, jnp.array([True, True, False, True])))
  shares = jax.nn.softmax(logits[jnp.array([1, 3])]) * objects
  np.testing.assert_allclose(two, [1 - objects, shares[0], 0, shares[1]], atol=1e-6)
  # With all boxes there, or two classes alone, nothing changes; without a box all is background.
  every = bootstrap.of_some_object(logits, jnp.ones(4, bool))
  np.testing.assert_allclose(every, logits, atol=1e-6)
  binary = bootstrap.of_some_object(logits[:2], jnp.ones(2, bool))
  np.testing.assert_allclose(binary, logits[:2], atol=1e-6)
  none = bootstrap.of_some_object(logits, jnp.array([True, False, False, False]))
  np.testing.assert_array_equal(jax.nn.softmax(none), [1, 0, 0, 0])


def test_a_mistaken_class_does_not_empty_its_box():
  """`targets` of a pixel that the network takes for the other class."""
  boxes = BoxLabels(
    inside=jnp.ones((1, 1, 1), bool),
    crowd=jnp.zeros((1, 1, 1), bool),
    box_class=jnp.full((1, 1, 1), 2),
    allowed=jnp.array([True, False, True])[None, None, None],
  )
  target = bootstrap.targets(
    "posterior",
    jnp.array([0.0, 5.0, -5.0])[None, None, None],
    jnp.zeros((1, 1, 1)),
    boxes,
    strength=1.0,
    prior=jnp.full((1, 1, 1), 0.5),
    smooth=lambda logits: logits,
    fill=lambda probabilities: probabilities,
  )
  np.testing.assert_allclose(
    target[0, 0, 0], jax.nn.softmax(jnp.array([0.0, -jnp.inf, 5.0])), atol=1e-4
  )
