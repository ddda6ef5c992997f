"""The report of a run: what it holds, that it is true, and how a browser shows it."""

import html
import json
import math
import re
import shutil
import subprocess

import jax
import numpy as np
import pytest
from test_data_survey import Page, configured, write_splits

from boxseg_jax import augment
from boxseg_jax.apps import box_history, report, report_page, results, svg
from boxseg_jax.apps.box_history import Box
from boxseg_jax.data.examples import ExampleReader
from boxseg_jax.errors import InputError
from boxseg_jax.evaluation import metrics, pictures
from boxseg_jax.losses import objective
from boxseg_jax.training import loop, origin, snapshots
from boxseg_jax.training.run import Run
from boxseg_jax.training.step import box_targets

EVIL = '<b><script>&"'
NAMES = ("background", EVIL, "person")
SECTIONS = (
  "Curves",
  "Classes",
  "Confusion",
  "Images",
  "Boxes",
  "Sigma",
  "Throughput",
  "Split",
  "Configuration",
  "Versions",
)
BROWSER = next(
  filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)


def quiet(line):
  del line


def small(root, **changes):
  """Six steps on one image with a mask and two with boxes, by as many devices as there are."""
  given = {
    "data__class_names": NAMES,
    "data__mask_fraction": 0.34,
    "data__pipeline": "numpy",
    "train__num_steps": 6,
    "train__log_every": 2,
    "eval__pictures": 3,
  }
  return configured(root, **given | changes)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  """Three images each, whose names and one of whose classes are HTML."""
  root = tmp_path_factory.mktemp("data")
  write_splits(root, suffix="<b>&'")
  for path in root.glob("*/instances.json"):
    path.write_text(path.read_text().replace('"car"', json.dumps(EVIL)))
  return root


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
  """(configuration, workdir, results) of a run."""
  config, workdir = small(data), tmp_path_factory.mktemp("runs") / f"run{EVIL}"
  return config, workdir, loop.train(config, workdir, report=quiet)


@pytest.fixture(scope="module")
def written(trained):
  """The text of its report."""
  config, workdir, _ = trained
  assert report.run(config, workdir, report=quiet) == f"Report: {workdir / 'report.html'}"
  return (workdir / "report.html").read_text(encoding="utf-8")


def section(text, title):
  """HTML of one section."""
  return re.search(rf"<section id='{title.lower()}'>(.*?)</section>", text, re.S).group(1)


def percent(share):
  return "-" if math.isnan(share) else f"{100 * share:.1f} %"


class TestWhatItHolds:
  def test_every_section_with_something_in_it(self, written):
    links = [attrs["href"] for tag, attrs in Page(written).tags if tag == "a"]
    assert links == [f"#{title.lower()}" for title in SECTIONS]
    counts = {title: Page(section(written, title)).tags for title in SECTIONS}
    tags = {title: [tag for tag, _ in found] for title, found in counts.items()}
    assert tags["Curves"].count("svg") == 8 and tags["Boxes"].count("svg") == 2
    assert tags["Sigma"].count("svg") == 1
    assert tags["Confusion"].count("td") == 9 and tags["Classes"].count("tr") == 4
    # One image of each kind, in four views: three images are too few for more.
    assert tags["Images"].count("img") == 12
    for title in ("Throughput", "Split", "Configuration", "Versions"):
      assert "table" in tags[title]

  def test_its_numbers_are_those_of_the_run(self, trained, written):
    _, workdir, named = trained
    assert json.loads((workdir / "result.json").read_text()) == pytest.approx(named, nan_ok=True)
    shown = re.findall(r"<div><b>([^<]*)</b>([^<]*)</div>", written)
    assert shown == [
      (percent(named["foreground_iou"]), "foreground IoU"),
      (percent(named["miou"]), "mean IoU with background"),
      (percent(named["pixel_accuracy"]), "pixels right"),
      (percent(named["boxes/mask_iou"]), "IoU of masks made in boxes"),
      (percent(named["boxes/sigma_auroc"]), "AUROC of sigma"),
    ]
    for name in NAMES:
      row = next(r for r in section(written, "Classes").split("<tr>") if html.escape(name) in r)
      assert f">{percent(named[f'iou/{name}'])}</td>" in row
    assert percent(named["boxes/sigma_calibration_error"]) in section(written, "Sigma")

  def test_what_names_say_is_text(self, written, trained):
    page = Page(written)
    assert EVIL in page.text and "3<b>&'.png" in page.text
    bold = section(written, "Images").count("<p><b>") + written.count("<div><b>")
    keys = len(re.findall(r"<span><i class='c\d'></i>[^<]*<b>", written))
    assert [tag for tag, _ in page.tags].count("b") == bold + keys, "a name has become a tag"
    assert not {"script", "iframe", "object"} & {tag for tag, _ in page.tags}
    told = [attrs["title"] for tag, attrs in page.tags if tag == "td" and "title" in attrs]
    assert any(EVIL in title for title in told)
    assert page.text.count(f"Run {trained[1].name}") == 2  # title and heading

  def test_tags_are_closed_in_their_order(self, written):
    class Nested(Page):
      trail = ()

      def handle_starttag(self, tag, attrs):
        super().handle_starttag(tag, attrs)
        if tag not in ("meta", "img", "br"):
          self.trail = (*self.trail, tag)

      def handle_startendtag(self, tag, attrs):
        super().handle_starttag(tag, attrs)

      def handle_endtag(self, tag):
        assert self.trail[-1] == tag, self.getpos()
        self.trail = self.trail[:-1]

    assert Nested(written).trail == ()

  def test_nothing_comes_from_elsewhere(self, written):
    for _, attrs in Page(written).tags:
      for name in ("src", "href", "srcset", "data", "action", "poster"):
        value = attrs.get(name) or ""
        assert value == "" or value.startswith(("data:", "#")), value[:80]
    text = re.sub(r"src='data:[^']*'", "", written)
    assert not re.search(r"url\(|@import|<script|<link|<iframe|https?:", text)
    assert len(written) < 5e6

  def test_counts_of_the_split_and_of_the_confusion(self, written, trained):
    config, _, _ = trained
    text = section(written, "Split")
    assert re.search(r"with masks</td><td[^>]*>1<", text)
    assert re.search(r"boxes only</td><td[^>]*>2<", text)
    cells = re.findall(r"title='([\d,]+) pixels", section(written, "Confusion"))
    assert sum(int(cell.replace(",", "")) for cell in cells) == 3 * 20 * 30
    changed = section(written, "Configuration").count("<tr class=changed>")
    assert f"<summary>{changed} of " in written and "train.num_steps" in written
    assert config.train.num_steps == 6

  def test_versions_and_command_are_those_of_the_training(self, trained, written):
    (start,) = origin.starts(trained[1])
    assert start["step"] == 0 and start["seconds"] > 0 and start["jax"] == jax.__version__
    text = Page(section(written, "Versions")).text
    assert start["command"] in text and f"jax{jax.__version__}{jax.__version__}" in text


class TestWhatIsMissing:
  def test_a_bare_run_says_what_it_lacks(self, trained, tmp_path):
    """No log, no kept targets, no note of the start, as of an earlier version."""
    config, workdir, _ = trained
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    for name in ("metrics.jsonl", "starts.json", "result.json"):
      (copy / name).unlink()
    shutil.rmtree(copy / "snapshots")
    report.run(config, copy, report=quiet)
    text = (copy / "report.html").read_text()
    assert "metrics.jsonl holds no numbers" in section(text, "Curves")
    assert "metrics.jsonl holds no rates" in section(text, "Throughput")
    assert "not written down" in section(text, "Versions")
    boxes = section(text, "Boxes")
    assert "This run kept no targets" in boxes and "step 0<" in boxes and "step 6<" in boxes

  def test_an_arm_without_sigma_and_boxes_says_so(self, data, tmp_path):
    config = small(data, arm="masks_only")
    run = Run(config, tmp_path, report=quiet)
    with run.open_checkpoints() as checkpoints:
      checkpoints.save(6, run.first_state(), None)
    (tmp_path / "metrics.jsonl").write_text('{"step": 6, "train/loss": null}\n{"step": 6, "tr')
    report.run(config, tmp_path, report=quiet)
    text = (tmp_path / "report.html").read_text()
    assert "does not learn sigma" in section(text, "Sigma")
    assert "changes inside boxes" in section(text, "Boxes")
    assert "AUROC" not in text and "certainty</figcaption>" not in text
    assert "Most uncertain" not in text and "metrics.jsonl holds no numbers" in text

  def test_without_pictures_no_box_is_followed(self, data, tmp_path):
    told = box_history.read(Run(small(data, eval__pictures=0), tmp_path, report=quiet))
    assert "eval.pictures is 0" in told and "eval.pictures" in report_page.boxes(told, NAMES)

  def test_no_run_and_another_configuration_are_refused(self, trained, data, tmp_path):
    with pytest.raises(InputError, match="holds no run"):
      report.run(trained[0], tmp_path, report=quiet)
    with pytest.raises(InputError, match="model.width: 2 -> 4"):
      report.run(small(data, model__width=4), trained[1], report=quiet)


class TestTheTargetsOfBoxes:
  def test_nine_looks_whatever_eval_every_is(self, trained):
    kept = snapshots.kept_targets(trained[1])
    assert list(kept) == [0, 1, 2, 3, 4, 5, 6]  # six steps have no nine
    assert [s for s in range(801) if snapshots.is_due(s, 800)] == list(range(0, 801, 100))
    assert all(
      target.shape == (2, 32, 48, 2) and target.dtype == np.uint8 for target in kept.values()
    )

  @pytest.mark.parametrize("step", [0, 6])
  def test_they_are_what_the_training_step_learns(self, trained, step):
    config, workdir, _ = trained
    run = Run(config, workdir, report=quiet)
    with run.open_checkpoints(read_only=True) as checkpoints:
      state = run.restore(checkpoints, step) if step else run.first_state()
    batch = [run.training.reader(int(index)) for index in run.training.box_indices]
    batch = augment.prepare({name: np.stack([e[name] for e in batch]) for name in batch[0]})
    boxes = objective.read_boxes(batch, 3)
    wanted = box_targets(
      run.model, jax.device_get(state.ema), batch, boxes, state.step, run.settings
    )
    wanted = np.where(boxes.inside[..., None], wanted, 0)[..., 1:]
    kept = snapshots.kept_targets(workdir)[step] / 255
    np.testing.assert_allclose(kept, wanted, atol=0.6 / 255)
    assert wanted.max() > 0.5

  def test_a_run_that_goes_on_keeps_them_too(self, trained, data, tmp_path, monkeypatch):
    config, workdir, _ = trained
    config = small(data, train__checkpoint_every=2)

    def stop(window, step, metrics):
      if step == 4:
        raise KeyboardInterrupt
      add(window, step, metrics)

    add = loop.Window.add
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
      patch.setattr(loop.Window, "add", stop)
      loop.train(config, tmp_path, report=quiet)
    loop.train(config, tmp_path, report=quiet)
    kept, whole = snapshots.kept_targets(tmp_path), snapshots.kept_targets(workdir)
    assert list(kept) == list(whole)
    for step, target in whole.items():
      np.testing.assert_array_equal(kept[step], target)
    first, second = origin.starts(tmp_path)
    assert "seconds" not in first and second["step"] == 2 and second["seconds"] > 0
    text = report_page.throughput({}, 8, [first, second])
    assert "compilation" not in text, "the time of a stopped start is not known"

  def test_share_and_overlap_by_hand(self):
    """A box of 4 x 4 pixels; its upper half is the object, its left half is taken for it."""
    true = np.zeros((1, 8, 8), np.int32)
    true[0, 2:4, 2:6] = 1
    target = np.zeros((1, 8, 8, 2), np.uint8)
    target[0, 2:6, 2:4, 0] = 200
    target[0, 2:6, 4:6, 0] = 100  # less than the background's share
    images = snapshots.BoxImages(
      names=("a",),
      image=np.zeros((1, 8, 8, 3), np.uint8),
      boxes=np.float32([[[0.25, 0.25, 0.75, 0.75]]]),
      box_classes=np.int32([[1]]),
      box_is_crowd=np.zeros((1, 1), bool),
      true_labels=true,
    )
    box = box_history._follow(images, 0, 0, [target])
    assert box.filled == [0.5] and box.iou == [4 / 12] and box.side == 4
    true[:] = 255
    assert math.isnan(box_history._follow(images, 0, 0, [target * 0]).iou[0])

  def test_small_and_large_boxes_of_each_class_are_chosen(self):
    boxes = [Box(0, i, 1 + (i == 0), float(i), [0.5], [0.5]) for i in range(40)]
    boxes[0] = boxes[0]._replace(side=9.0)
    picked = box_history.chosen(boxes)
    assert len(picked) == 7 and {box.label for box in picked} == {1, 2}
    sides = [box.side for box in picked if box.label == 1]
    assert sides[0] == 4 and sides[-1] == 39 and sides == sorted(sides)
    assert box_history.chosen([boxes[1]]) == [boxes[1]]  # too small, but all there is
    assert box_history.chosen([]) == []


class TestHowItJudges:
  @pytest.mark.parametrize("tiles", ["fit", "slide"])
  def test_image_by_image_adds_up_to_the_evaluation(self, data, tmp_path, tiles):
    """Of a network that says something of everything, at the images' own size."""
    config = small(data, data__canvas=(16, 16), eval__tiles=tiles, eval__box_images=0)
    run = Run(config, tmp_path, report=quiet)
    rng = np.random.default_rng(0)
    state = jax.device_get(run.first_state())
    params = jax.tree.map(
      lambda leaf: (leaf + rng.normal(size=leaf.shape)).astype(leaf.dtype), state.ema["params"]
    )
    state = state.replace(ema=state.ema | {"params": params})
    predictor = report.predictor_of(run, state)
    scores, confusion = report.judge(predictor, run.judged, 3)
    named = run.measure(run.parallel.replicate(state))
    assert (confusion.sum(axis=0) > 0).sum() > 1
    assert metrics.summary(confusion)["miou"] == pytest.approx(named["miou"], abs=2e-3)
    assert [score.index for score in scores] == [0, 1, 2]
    assert confusion.sum() == 3 * 20 * 30

  def test_ranks(self):
    scores = [
      report.Score(i, iou, c) for i, (iou, c) in enumerate([(0.5, 0.9), (0.1, 0.8), (0.9, 0.2)])
    ]
    scores.append(report.Score(3, math.nan, math.nan))
    kinds = report.ranked(scores * 1, learns_sigma=True)
    assert {title: [s.index for s in some] for title, some in kinds.items()} == {
      "Worst": [1],
      "Best": [2],
      "Most uncertain": [2],
    }
    assert list(report.ranked(scores, learns_sigma=False)) == ["Worst", "Best"]
    assert report.ranked([scores[3]], learns_sigma=True)["Worst"] == []

  def test_pictures_of_an_image_and_of_a_box(self):
    image = np.full((20, 40, 3), 120, np.uint8)
    labels = np.zeros((20, 40), int)
    labels[5:15, 10:20] = 1
    views = pictures.judged(image, labels, 0 * labels, labels.astype(float), 2, side=80)
    assert list(views) == ["image", "true mask", "prediction", "certainty"]
    assert all(view.shape == (40, 80, 3) for view in views.values())
    assert (views["true mask"] != views["prediction"]).any(axis=-1)[10:30, 20:40].all()
    target = np.eye(2)[labels]
    box = np.float32([0.25, 0.25, 0.75, 0.5])
    tiles = pictures.box_history(image, box, [0 * target, target], labels, label=1, side=52)
    assert [tile.shape for tile in tiles] == [(52, 52, 3)] * 4
    inside = np.s_[12:40, 12:40]
    assert (tiles[2] != tiles[1]).any(axis=-1)[inside].all()
    corner = pictures.box_history(image, np.float32([0, 0, 1, 1]), [target], None, label=1, side=52)
    assert [tile.shape for tile in corner] == [(26, 52, 3)] * 2


class TestCharts:
  def test_points_lie_where_they_should(self):
    chart = svg.lines("t", [svg.Series("a", [(0, 0.0), (10, 50.0), (20, 100.0)])], top=100)
    (places,) = re.findall(r"class='line c0' points='([^']*)'", chart)
    (x0, y0), (x1, y1), (x2, y2) = [map(float, p.split(",")) for p in places.split()]
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.11) and y0 - y1 == pytest.approx(
      y1 - y2, abs=0.11
    )
    assert x0 < x1 and y0 > y1
    assert "a, step 10: 50" in chart and "<b>100</b>" in chart

  def test_nothing_to_draw_and_equal_values(self):
    assert svg.lines("t", [svg.Series("a", [])]) == ""
    assert "nan" not in svg.lines("t", [svg.Series("a", [(5, 0.0)])])

  def test_many_points_are_thinned_and_the_last_stays(self):
    points = [(step, step / 1e4) for step in range(10_001)]
    chart = svg.lines("t", [svg.Series("a", points)])
    assert chart.count("<circle") == 200 and "step 10,000: 1<" in chart

  def test_numbers(self):
    values = [0, 0.12345, 12.345, 1234.5, 1.2345e-7]
    assert [svg.number(v) for v in values] == ["0", "0.123", "12.3", "1,234", "1.2e-07"]

  def test_reliability_leaves_empty_bins_out(self):
    chart = svg.reliability("t", [0.1, np.nan, 0.9], [0.2, np.nan, 1.0], [10, 0, 30])
    assert chart.count("<circle") == 2 and "nan" not in chart
    assert "expected 10.0 % wrong, observed 20.0 %: 10 pixels" in chart


MEASURE = """
<script>
addEventListener('load', () => {
  const told = [...document.querySelectorAll('iframe')].map(frame => {
    const page = frame.contentDocument, root = page.documentElement;
    const images = [...page.images];
    return {
      asked: frame.width * 1, width: root.clientWidth, scroll: root.scrollWidth,
      images: images.length, broken: images.filter(i => !(i.complete && i.naturalWidth > 0)).length,
      flat: [...page.querySelectorAll('svg, img, table')].filter(
        e => !e.closest('details') && !(e.getBoundingClientRect().height > 0)).length,
      outside: [...page.querySelectorAll('body *')].filter(
        e => !e.closest('.scroll, details') &&
          e.getBoundingClientRect().right > root.clientWidth + 1
      ).length,
    };
  });
  document.body.innerHTML = '<pre id=told>' + JSON.stringify(told) + '</pre>';
});
</script>
"""


def look_at(text, folder):
  """What a headless browser measures at 1280 and 400 pixels; and what it complains of."""
  # Frames, as no window of the browser may be narrower than 500 pixels.
  frames = "".join(
    f"<iframe width={width} height=900 srcdoc='{html.escape(text, quote=True)}'></iframe>"
    for width in (1280, 400)
  )
  page = folder / "frames.html"
  page.write_text(f"<!doctype html><meta charset=utf-8><body>{frames}{MEASURE}", encoding="utf-8")
  done = subprocess.run(
    [
      BROWSER,
      "--headless=new",
      "--no-sandbox",
      "--disable-gpu",
      "--enable-logging=stderr",
      f"--user-data-dir={folder / 'profile'}",
      "--window-size=1800,1000",
      "--virtual-time-budget=20000",
      "--dump-dom",
      page.as_uri(),
    ],
    capture_output=True,
    text=True,
    timeout=120,
    check=False,
  )
  told = re.search(r"<pre id=\"told\">(.*?)</pre>", done.stdout, re.S)
  assert told, done.stderr[-2000:]
  complaints = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
  return json.loads(html.unescape(told.group(1))), complaints


@pytest.mark.skipif(not BROWSER, reason="no chromium or chrome here")
class TestInABrowser:
  def test_wide_and_narrow(self, written, tmp_path):
    measured, complaints = look_at(written, tmp_path)
    assert complaints == []
    assert [one["asked"] for one in measured] == [1280, 400]
    for one in measured:
      assert 0 < one["width"] <= one["asked"] and one["images"] > 20
      assert one["scroll"] <= one["width"], "the page can be scrolled sideways"
      assert one["broken"] == one["flat"] == one["outside"] == 0, one

  def test_a_spoilt_page_would_be_found_out(self, written, tmp_path):
    spoilt = "<div style='width:3000px'>wide</div><img src='data:image/png;base64,AAAA'>"
    spoilt += "<script>console.error('spoilt')</script></body>"
    measured, complaints = look_at(written.replace("</body>", spoilt), tmp_path)
    assert any("spoilt" in line for line in complaints)
    assert all(one["broken"] == 1 and one["outside"] > 0 for one in measured)
    assert all(one["scroll"] > one["width"] for one in measured)


def test_the_best_checkpoint_is_opened_by_evaluation_and_report_alike(trained):
  config, workdir, named = trained
  run, step, _ = results.open_best(config, workdir, report=quiet)
  assert step == 6 and isinstance(run.judged, ExampleReader)
  assert results.evaluate_run(config, workdir, report=quiet) == pytest.approx(named, nan_ok=True)
