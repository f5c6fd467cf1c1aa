"""The tensors whose update is timed: the shapes of real networks."""

from __future__ import annotations

from collections.abc import Callable

import torch

Shapes = list[list[int]]


def _resnet(name: str) -> Shapes:
    from torchvision import models

    with torch.device("meta"):
        network = getattr(models, name)()
    return [list(param.shape) for param in network.parameters()]


def _gpt2(layers: int = 12, width: int = 768, vocabulary: int = 50257, context: int = 1024) -> Shapes:
    """Return the shapes of GPT-2; its head is its embedding."""
    linear = lambda inputs, outputs: [[inputs, outputs], [outputs]]
    norm = [[width], [width]]
    attention = [*linear(width, 3 * width), *linear(width, width)]
    feed_forward = [*linear(width, 4 * width), *linear(4 * width, width)]
    return [[vocabulary, width], [context, width], *([*norm, *attention, *norm, *feed_forward] * layers), *norm]


def _mlp(layers: int, width: int = 64) -> Shapes:
    return [[width, width], [width]] * layers


MODELS: dict[str, Callable[[], Shapes]] = {
    "resnet18": lambda: _resnet("resnet18"),
    "resnet50": lambda: _resnet("resnet50"),
    "gpt2": _gpt2,
    "mlp1000": lambda: _mlp(500),
    "tiny": lambda: _mlp(2, 8),
}
TITLES = {
    "resnet18": "ResNet-18",
    "resnet50": "ResNet-50",
    "gpt2": "GPT-2, 12 layers",
    "mlp1000": "MLP of 500 layers",
    "tiny": "tiny MLP",
}

# Cold compile time over the number of tensors.
BY_COUNT: dict[int, Callable[[], Shapes]] = {
    4: MODELS["tiny"],
    10: lambda: _mlp(5),
    62: MODELS["resnet18"],
    161: MODELS["resnet50"],
    1000: MODELS["mlp1000"],
}


def size(shapes: Shapes) -> int:
    """Return the number of scalars."""
    return sum(torch.Size(shape).numel() for shape in shapes)
