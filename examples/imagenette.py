"""Imagenette, ten easy classes of ImageNet, as fastai's lessons use it: the images and two networks for them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

URL = "https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-160.tgz"

# The images


def load(folder: Path, size: int = 128) -> tuple[TensorDataset, TensorDataset]:
    """Return the images to train on and to validate with, read by torchvision and squeezed into squares.

    They are kept as bytes, uint8 of shape [3, size, size], so that all of them fit into memory (0.7 GB at 128 pixels)
    and each is decoded once; :class:`Normalize` makes numbers of them where the network runs.

    Args:
        folder: where ``imagenette2-160`` lies.
        size: pixels of a side.

    Raises:
        SystemExit: the images are not there.
    """
    from torchvision.datasets import Imagenette
    from torchvision.transforms import Compose, PILToTensor, Resize

    transform = Compose([Resize((size, size)), PILToTensor()])
    try:
        parts = [Imagenette(folder, split, size="160px", transform=transform) for split in ("train", "val")]
    except (RuntimeError, FileNotFoundError):
        raise SystemExit(
            f"there is no Imagenette in {folder}: unpack {URL} (99 MB) there, so that it holds imagenette2-160/train "
            "and imagenette2-160/val; or let torchvision do it, where there is a network:\n"
            f"    python -c \"import torchvision; torchvision.datasets.Imagenette('{folder}', size='160px', "
            'download=True)"'
        ) from None
    train, valid = (_read(part, size) for part in parts)
    return train, valid


def _read(part, size: int) -> TensorDataset:
    images = torch.empty(len(part), 3, size, size, dtype=torch.uint8)
    labels = torch.empty(len(part), dtype=torch.int64)
    with ThreadPoolExecutor() as pool:  # decoding does not hold Python's lock
        for i, (image, label) in enumerate(pool.map(part.__getitem__, range(len(part)))):
            images[i], labels[i] = image, label
    return TensorDataset(images, labels)


class Normalize(nn.Module):
    """Make bytes into numbers around 0, with the statistics that the notebook took from a batch."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.47, 0.48, 0.45])[:, None, None])
        self.register_buffer("std", torch.tensor([0.29, 0.28, 0.30])[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        return (images / 255 - self.mean) / self.std


# The notebook's network


def conv_net(channels: int = 3, classes: int = 10, widths: Sequence[int] = (32, 64, 128, 256)) -> nn.Sequential:
    """Return the convolutional network of fastai's lessons, ``get_cnn_model``.

    Three layers come first, whatever the widths. The first has fewer outputs than the ``9·channels`` numbers that each
    of them sees (the power of two below), the next two double them. All layers but the first halve the image.

    Args:
        channels: of the images.
        classes: how many there are.
        widths: channels of the layers that follow.
    """
    first = 2 ** math.floor(math.log2(9 * channels))
    sizes = [channels, first, 2 * first, 4 * first, *widths]
    layers = [
        _relu_bn(inputs, outputs, stride=1 if i == 0 else 2) for i, (inputs, outputs) in enumerate(pairwise(sizes))
    ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(sizes[-1], classes))


def _relu_bn(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, a=0.1)
    return nn.Sequential(conv, nn.ReLU(), nn.BatchNorm2d(outputs))  # the lesson normalises after the ReLU


# The article's network


def xresnet34(
    channels: int = 3,
    classes: int = 10,
    widths: Sequence[int] = (64, 128, 256, 512),
    depths: Sequence[int] = (3, 4, 6, 3),
) -> nn.Sequential:
    """Return a ResNet with the "bag of tricks", as fastai's ``xresnet34``.

    The first convolution is three small ones; a shortcut that shrinks the image averages before its 1x1 convolution, so
    that it sees every pixel; and each block starts as its shortcut, because the scale of its last normalisation is 0.
    He et al., "Bag of Tricks for Image Classification with Convolutional Neural Networks" (2019).

    Args:
        channels: of the images.
        classes: how many there are.
        widths: channels of the stages; the first two convolutions have half of the first.
        depths: blocks of the stages.
    """
    stem = [channels, widths[0] // 2, widths[0] // 2, widths[0]]
    layers: list[nn.Module] = [
        _bn_relu(inputs, outputs, stride=2 if i == 0 else 1) for i, (inputs, outputs) in enumerate(pairwise(stem))
    ]
    layers.append(nn.MaxPool2d(3, stride=2, padding=1))
    before = widths[0]
    for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        stride = 1 if stage == 0 else 2
        blocks = [Block(before if i == 0 else width, width, stride if i == 0 else 1) for i in range(depth)]
        layers.append(nn.Sequential(*blocks))
        before = width
    head = nn.Linear(before, classes)
    nn.init.kaiming_normal_(head.weight)
    nn.init.zeros_(head.bias)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)


class Block(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(_bn_relu(inputs, outputs, stride=stride), _conv_bn(outputs, outputs))
        nn.init.zeros_(self.convs[1][1].weight)  # pyright: ignore[reportIndexIssue, reportArgumentType]
        shrink = [nn.AvgPool2d(2, ceil_mode=True)] if stride == 2 else []
        match = [_conv_bn(inputs, outputs, size=1)] if inputs != outputs else []
        self.shortcut = nn.Sequential(*shrink, *match)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.convs(x) + self.shortcut(x))


def _conv_bn(inputs: int, outputs: int, size: int = 3, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


def _bn_relu(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(*_conv_bn(inputs, outputs, stride=stride), nn.ReLU())
