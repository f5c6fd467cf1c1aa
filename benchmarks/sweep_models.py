"""The networks that are trained many at a time, on images of 8x8 pixels; ``sweep_jax`` has the same in JAX."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BATCH, PIXELS, CLASSES = 32, 64, 10
WIDTH, HEADS = 32, 4  # of the transformer


def mlp(*widths: int) -> nn.Module:
    """Return linear layers with ReLU between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def conv_net() -> nn.Module:
    """Return three 3x3 convolutions of 8, 16 and 32 channels, each before a ReLU, with pooling to 4x4 pixels."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, CLASSES),
    )


class Block(nn.Module):
    """Attention and a feed-forward network, each after a norm and beside a skip connection."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, -1))
        weights = torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, -1)
        x = x + self.out((weights @ v).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class Transformer(nn.Module):
    """Two blocks over the rows of the image, of which the mean is classified."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, WIDTH)
        self.position = nn.Parameter(0.1 * torch.randn(8, WIDTH))
        self.block1, self.block2 = Block(), Block()
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.unflatten(1, (8, 8))) + self.position
        return self.head(self.norm(self.block2(self.block1(x))).mean(1))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "mlp_small": lambda: mlp(PIXELS, 32, 32, CLASSES),
    "mlp_medium": lambda: mlp(PIXELS, 128, 128, CLASSES),
    "conv": conv_net,
    "transformer": Transformer,
}
TITLES = {
    "mlp_small": "MLP 64-32-32-10",
    "mlp_medium": "MLP 64-128-128-10",
    "conv": "convolutions 1-8-16-32",
    "transformer": "transformer, 2 layers of 32",
}


def network(name: str) -> nn.Module:
    """Return a network, always with the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return NETWORKS[name]()


def batches(count: int = 16) -> list[tuple[Tensor, Tensor]]:
    """Return random images and labels."""
    generator = torch.Generator().manual_seed(1)
    draw = lambda: torch.randn(BATCH, PIXELS, generator=generator)
    return [(draw(), torch.randint(CLASSES, (BATCH,), generator=generator)) for _ in range(count)]


def hypers(members: int) -> dict[str, list[float]]:
    """Return the settings of each member; the first one's are AdamW's defaults."""
    spread = [i / members for i in range(members)]
    return {
        "lr": [1e-3 * 0.1**t for t in spread],
        "weight_decay": [0.01 * 0.1**t for t in spread],
        "beta1": [0.9 - 0.1 * t for t in spread],
    }


def flops(name: str) -> int:
    """Return the floating-point operations of one member's forward and backward pass, those of products only."""
    from torch.utils.flop_counter import FlopCounterMode

    model, (x, y) = network(name), batches(1)[0]
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(model(x), y).backward()
    return counter.get_total_flops()
