"""One row of `bench_train.py`: a training step in PyTorch, in a process of its own.

Takes the row as JSON and prints what it measured as JSON. The networks are those of
`boxseg_jax.models` layer by layer, written after the papers that are named there: as many
parameters (but for the head of sigma, 33 to 257 of them), the same products. "smp" and
"torchvision" are what those libraries call by the same name, where they are installed.
"""

import contextlib
import json
import platform
import sys
import time
from functools import partial

import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class LeftOutError(Exception):
  """The row cannot be measured here, and why."""


def conv(inputs, features, kernel=3, *, stride=1, dilation=1):
  padding = (kernel - 1) // 2 * dilation
  shared = {"stride": stride, "dilation": dilation, "padding": padding}
  return nn.Conv2d(inputs, features, kernel, bias=False, **shared)


def conv_norm_act(inputs, features, kernel=3, **options):
  layer = conv(inputs, features, kernel, **options)
  return nn.Sequential(layer, nn.BatchNorm2d(features), nn.ReLU(inplace=True))


class Block(nn.Module):
  """A ResNet's block of two 3x3 convolutions, or of a 1x1, a 3x3 and a 1x1 ("deep")."""

  def __init__(self, inputs, width, *, stride, dilations, deep):
    super().__init__()
    before, after = dilations
    features = 4 * width if deep else width
    if deep:
      layers = [
        conv_norm_act(inputs, width, 1),
        conv_norm_act(width, width, stride=stride, dilation=before),
        conv(width, features, 1),
      ]
    else:
      first = conv_norm_act(inputs, width, stride=stride, dilation=before)
      layers = [first, conv(width, width, dilation=after)]
    self.layers = nn.Sequential(*layers, nn.BatchNorm2d(features))
    self.shortcut = nn.Identity()
    if stride > 1 or inputs != features:
      projected = conv(inputs, features, 1, stride=stride)
      self.shortcut = nn.Sequential(projected, nn.BatchNorm2d(features))

  def forward(self, x):
    return functional.relu(self.layers(x) + self.shortcut(x))


class ResNet(nn.Module):
  """Features at strides 2, 4, 8, 16 and 32, none above `output_stride`."""

  def __init__(self, depth, output_stride=32):
    super().__init__()
    deep = depth >= 50
    self.stem = conv_norm_act(3, 64, 7, stride=2)
    self.pool = nn.MaxPool2d(3, 2, 1)
    self.stages, self.channels = nn.ModuleList(), [64]
    reached, dilation = 4, 1
    for stage, blocks in enumerate((3, 4, 6, 3)):
      stride = 2 if stage and reached < output_stride else 1
      reached *= stride
      after = dilation * (2 if stage and stride == 1 else 1)
      made = []
      for block in range(blocks):
        step = {"stride": 1, "dilations": (after, after)}
        step = step if block else {"stride": stride, "dilations": (dilation, after)}
        inputs = self.channels[-1] if not block else (4 if deep else 1) * 64 * 2**stage
        made.append(Block(inputs, 64 * 2**stage, deep=deep, **step))
      self.stages.append(nn.Sequential(*made))
      self.channels.append((4 if deep else 1) * 64 * 2**stage)
      dilation = after

  def forward(self, x):
    features = [self.stem(x)]
    x = self.pool(features[0])
    for stage in self.stages:
      x = stage(x)
      features.append(x)
    return features


class ConvEncoder(nn.Module):
  """Pairs of 3x3 convolutions between halvings by the mean."""

  def __init__(self, width=16, levels=4):
    super().__init__()
    self.channels = [width * 2**level for level in range(levels)]
    pairs = zip([3, *self.channels], self.channels, strict=False)
    self.levels = nn.ModuleList(
      nn.Sequential(conv_norm_act(inputs, features), conv_norm_act(features, features))
      for inputs, features in pairs
    )

  def forward(self, x):
    features = []
    for level, layers in enumerate(self.levels):
      x = layers(functional.avg_pool2d(x, 2, ceil_mode=True) if level else x)
      features.append(x)
    return features


class UNetDecoder(nn.Module):
  """From the coarsest feature up: doubled, joined with the next one, two convolutions."""

  def __init__(self, channels, widths):
    super().__init__()
    self.levels = nn.ModuleList()
    inputs = channels[-1]
    for width, skip in zip(widths, channels[-2::-1], strict=True):
      pair = conv_norm_act(inputs + skip, width), conv_norm_act(width, width)
      self.levels.append(nn.Sequential(*pair))
      inputs = width
    self.features = inputs

  def forward(self, features):
    *skips, x = features
    for layers, skip in zip(self.levels, reversed(skips), strict=True):
      x = functional.interpolate(x, scale_factor=2.0, mode="nearest")
      x = layers(torch.cat([x[..., : skip.shape[2], : skip.shape[3]], skip], 1))
    return x


class DeepLabDecoder(nn.Module):
  """Pyramid of dilated convolutions, upsampled to stride 4 and joined with early features."""

  features = 256

  def __init__(self, channels, rates=(6, 12, 18)):
    super().__init__()
    late, width = channels[-1], self.features
    self.point, self.image = conv_norm_act(late, width, 1), conv_norm_act(late, width, 1)
    self.dilated = nn.ModuleList(conv_norm_act(late, width, dilation=rate) for rate in rates)
    self.join = conv_norm_act((2 + len(rates)) * width, width, 1)
    self.early = conv_norm_act(channels[1], 48, 1)
    self.last = nn.Sequential(conv_norm_act(48 + width, width), conv_norm_act(width, width))

  def forward(self, features):
    early, late = self.early(features[1]), features[-1]
    branches = [self.point(late), *(layer(late) for layer in self.dilated)]
    mean = self.image(late.mean((2, 3), keepdim=True)).expand_as(branches[0])
    return self.last(
      torch.cat([resize(self.join(torch.cat([*branches, mean], 1)), early), early], 1)
    )


class Factorised(nn.Module):
  """ERFNet's block: two pairs of a 3x1 and a 1x3 convolution, the second pair dilated."""

  def __init__(self, features, dilation):
    super().__init__()
    self.pairs = nn.ModuleList(self._pair(features, rate) for rate in (1, dilation))

  def _pair(self, features, rate):
    vertical = {"padding": (rate, 0), "dilation": (rate, 1)}
    horizontal = {"padding": (0, rate), "dilation": (1, rate), "bias": False}
    return nn.Sequential(
      nn.Conv2d(features, features, (3, 1), **vertical),
      nn.ReLU(inplace=True),
      nn.Conv2d(features, features, (1, 3), **horizontal),
      nn.BatchNorm2d(features),
    )

  def forward(self, x):
    first, second = self.pairs
    return functional.relu(x + second(functional.relu(first(x))))


class Down(nn.Module):
  """A strided convolution beside a maximum over 2x2 blocks."""

  def __init__(self, inputs, features):
    super().__init__()
    self.filter, self.norm = conv(inputs, features - inputs, stride=2), nn.BatchNorm2d(features)

  def forward(self, x):
    pooled = functional.max_pool2d(x, 2, ceil_mode=True)
    return functional.relu(self.norm(torch.cat([self.filter(x), pooled], 1)))


class Up(nn.Module):
  """A transposed convolution that doubles the size, cut to the wanted one."""

  def __init__(self, inputs, features, kernel):
    super().__init__()
    more = {"padding": 1, "output_padding": 1} if kernel == 3 else {}
    self.filter = nn.ConvTranspose2d(inputs, features, kernel, stride=2, bias=False, **more)
    self.norm = nn.BatchNorm2d(features)

  def forward(self, x, like):
    return functional.relu(self.norm(self.filter(x)[..., : like.shape[2], : like.shape[3]]))


class ERFNet(nn.Module):
  """Encoder and decoder in one, as nothing but sizes passes between them."""

  features = 16

  def __init__(self):
    super().__init__()
    deep = [Factorised(128, rate) for rate in (2, 4, 8, 16) * 2]
    self.down1 = Down(3, 16)
    self.down2 = nn.Sequential(Down(16, 64), *(Factorised(64, 1) for _ in range(5)))
    self.down3 = nn.Sequential(Down(64, 128), *deep)
    self.up = nn.ModuleList([Up(128, 64, 3), Up(64, 16, 3), Up(16, 16, 2)])
    self.after = nn.ModuleList(
      nn.Sequential(Factorised(width, 1), Factorised(width, 1)) for width in (64, 16)
    )

  def forward(self, x):
    half = self.down1(x)
    quarter = self.down2(half)
    y = self.after[0](self.up[0](self.down3(quarter), quarter))
    return self.up[2](self.after[1](self.up[1](y, half)), x)


def resize(x, like):
  size = like.shape[2:]
  return functional.interpolate(x, size=size, mode="bilinear", align_corners=False)


class Segmenter(nn.Module):
  """Body, and logits in float32 at the image's size."""

  def __init__(self, body, features, num_classes):
    super().__init__()
    self.body, self.head = body, nn.Conv2d(features, num_classes, 1)

  def forward(self, image):
    x = self.body(image)
    with torch.autocast(image.device.type, enabled=False):
      return resize(self.head(x.float()), image)


def _joined(encoder, make_decoder, num_classes):
  decoder = make_decoder(encoder.channels)
  return Segmenter(nn.Sequential(encoder, decoder), decoder.features, num_classes)


def _unet(make_encoder, widths, num_classes):
  return _joined(make_encoder(), partial(UNetDecoder, widths=widths), num_classes)


def _torchvision(num_classes):
  """DeepLabV3, the nearest that it has: no early features, output stride 8."""
  from torchvision.models.segmentation import deeplabv3_resnet50

  options = {"weights": None, "weights_backbone": None, "num_classes": num_classes}
  return _Chosen(deeplabv3_resnet50(**options))


class _Chosen(nn.Module):
  """Of several outputs the one that counts."""

  def __init__(self, network):
    super().__init__()
    self.network = network

  def forward(self, image):
    return self.network(image)["out"]


def _smp(name, encoder, num_classes):
  import segmentation_models_pytorch as smp

  return getattr(smp, name)(encoder, encoder_weights=None, classes=num_classes)


NETWORKS = {
  "torch": {
    "unet-conv": partial(_unet, ConvEncoder, (64, 32, 16)),
    "unet-r34": partial(_unet, partial(ResNet, 34), (256, 128, 64, 32)),
    "erfnet": lambda num_classes: Segmenter(ERFNet(), ERFNet.features, num_classes),
    "deeplabv3plus-r50": lambda num_classes: _joined(ResNet(50, 16), DeepLabDecoder, num_classes),
  },
  "smp": {
    "unet-r34": partial(_smp, "Unet", "resnet34"),
    "deeplabv3plus-r50": partial(_smp, "DeepLabV3Plus", "resnet50"),
  },
  "torchvision": {"deeplabv3plus-r50": _torchvision},
}
NETWORKS["torch-eager"] = NETWORKS["torch"]


class Trainer:
  """Network, optimiser and one batch on the device."""

  def __init__(self, row, *, compiled):
    """Args: row: see `bench_train.py`; compiled: by `torch.compile`."""
    self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    make = _network_maker(row)
    self.network = make(row["num_classes"]).to(self.device, memory_format=torch.channels_last)
    rate = {"lr": 1e-3, "weight_decay": 1e-4}
    self._optimizer = torch.optim.AdamW(self.network.parameters(), fused=True, **rate)
    shape = (row["batch_size"], *row["size"])
    self.batch = (
      torch.randint(0, 256, (*shape, 3), dtype=torch.uint8, device=self.device),
      torch.randint(0, row["num_classes"], shape, device=self.device),
    )
    self._dtype = _DTYPES[row["dtype"]]
    self._mean = torch.tensor([0.485, 0.456, 0.406], device=self.device)
    self._std = torch.tensor([0.229, 0.224, 0.225], device=self.device)
    self._loss = torch.compile(self.loss) if compiled else self.loss

  def loss(self, image, labels):
    """Mean cross entropy; image uint8 [batch, height, width, 3]: channels last as it lies."""
    image = ((image / 255.0 - self._mean) / self._std).permute(0, 3, 1, 2)
    low = self._dtype != torch.float32
    with torch.autocast(self.device.type, dtype=self._dtype) if low else contextlib.nullcontext():
      logits = self.network(image)
    return functional.cross_entropy(logits.float(), labels)

  def step(self):
    self._optimizer.zero_grad(set_to_none=True)
    loss = self._loss(*self.batch)
    loss.backward()
    self._optimizer.step()
    return loss.detach()

  def count_flops(self):
    with FlopCounterMode(display=False) as counter:
      self.loss(*self.batch).backward()
    self._optimizer.zero_grad(set_to_none=True)
    return counter.get_total_flops()

  def time_steps(self, count):
    """Seconds per step; each loss is waited for while the next step is under way."""
    self._settle(self.step())
    started, running = time.perf_counter(), None
    for _ in range(count):
      loss = self._sent(self.step())
      if running:
        self._settle(*running)
      running = loss
    self._settle(*running)
    self._synchronize()
    return (time.perf_counter() - started) / count

  def _sent(self, loss):
    """The loss on its way to the host, and what tells that it is there."""
    if self.device.type == "cpu":
      return loss, None
    arrived = torch.cuda.Event()
    host = torch.empty((), pin_memory=True)
    host.copy_(loss, non_blocking=True)
    arrived.record()
    return host, arrived

  def _settle(self, loss, arrived=None):
    # `loss.item()` would wait for the step that has been started since, too.
    if arrived is not None:
      arrived.synchronize()
    return loss.item()

  def _synchronize(self):
    if self.device.type == "cuda":
      torch.cuda.synchronize()


def _network_maker(row):
  known = NETWORKS[row["framework"]]
  if row["network"] not in known:
    raise LeftOutError(f"{row['framework']} has nothing like {row['network']}")
  return known[row["network"]]


def _first_step(row):
  """(trainer, seconds of its first step, how it runs)."""
  wanted = row["framework"] != "torch-eager"
  for compiled in (True, False) if wanted else (False,):
    trainer = Trainer(row, compiled=compiled)
    started = time.perf_counter()
    try:
      trainer.step().item()
    except Exception as error:  # whatever the compiler stumbles over
      if not compiled or isinstance(error, torch.OutOfMemoryError):
        raise
      why = f"{type(error).__name__}: {error}".splitlines()[0][:200]
      continue
    how = "torch.compile" if compiled else "eager"
    note = f"torch.compile failed, so it runs eagerly: {why}" if wanted and not compiled else ""
    return trainer, time.perf_counter() - started, how, note
  raise AssertionError("eager mode always returns or raises")


def measure(row):
  """What one row found, see `bench_train.py`."""
  torch.set_float32_matmul_precision("high")  # TF32 where there is, as convolutions and JAX have it
  torch.backends.cudnn.benchmark = True
  trainer, first, how, note = _first_step(row)
  seconds = sorted(trainer.time_steps(row["steps"]) for _ in range(row["repeats"]))
  on_gpu = trainer.device.type == "cuda"
  memory = torch.cuda.max_memory_allocated() if on_gpu else None
  return {
    "device": torch.cuda.get_device_name() if on_gpu else "cpu",
    "versions": {"python": platform.python_version(), "torch": torch.__version__},
    "how": how,
    "note": note,
    "parameters": sum(parameter.numel() for parameter in trainer.network.parameters()),
    "flops_per_step": trainer.count_flops(),  # eagerly, so after memory has been looked at
    "seconds_per_step": seconds[0],
    "slowest_seconds_per_step": seconds[-1],
    "first_step_seconds": first,
    "memory_bytes": memory,
  }


def main():
  row = json.loads(sys.argv[1])
  try:
    print(json.dumps(measure(row)))
  except (LeftOutError, ImportError) as error:
    print(json.dumps({"left_out": str(error)}))


if __name__ == "__main__":
  main()
