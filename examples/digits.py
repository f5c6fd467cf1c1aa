"""The digits that the examples train on: scikit-learn's 1797 images of 8x8 pixels, a split, mini-batches, a network."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn


class Split(NamedTuple):
    """Images and what they show."""

    images: Tensor  # float32, [N, 1, 8, 8]
    labels: Tensor  # int64, [N]


class Digits(NamedTuple):
    """1077 images to train on, 360 to choose with and 360 to report on."""

    train: Split
    valid: Split
    test: Split


def load(seed: int = 0) -> Digits:
    """Return the digits, split at random by ``seed`` and standardised with the statistics of the train images."""
    pixels, digits = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8)
    labels = torch.tensor(digits, dtype=torch.int64)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    train, valid, test = order[:1077], order[1077:1437], order[1437:]
    images = (images - images[train].mean()) / images[train].std()
    return Digits(*(Split(images[part], labels[part]) for part in (train, valid, test)))


def batches(data: Split, size: int, epochs: int, seed: int = 0) -> Iterator[Split]:
    """Yield mini-batches, shuffled anew for every epoch; what does not fill a batch is left out of that epoch."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        order = torch.randperm(len(data.labels), generator=generator)
        for part in order[: len(order) // size * size].split(size):
            yield Split(data.images[part], data.labels[part])


def conv_net(seed: int = 0) -> nn.Module:
    """Return a small convolutional network, with weights drawn by ``seed``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * 4 * 4, 10),
        )


def accuracy(scores: Tensor, labels: Tensor) -> float:
    """Return the fraction of the images whose highest score is that of their label."""
    return (scores.argmax(dim=-1) == labels).double().mean().item()
