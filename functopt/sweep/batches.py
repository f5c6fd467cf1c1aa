"""What a sweep trains on: batches that come one by one, or tensors from which the compiled steps gather them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import optree
import torch
from torch import Tensor

from functopt import tree
from functopt.tree import Tree

__all__ = ["Batches", "Reader", "pick"]


@dataclass(frozen=True, eq=False)
class Batches:
    """Mini-batches of tensors, shuffled anew for every epoch; what does not fill a batch is left out of that epoch.

    Iterating gives the batches one by one, the same ones every time. :func:`sweep` draws only their indices, and its
    compiled steps gather the batches themselves.

    Args:
        data: a tree of tensors with one leading axis of examples, such as ``(images, labels)``.
        batch_size: examples in a batch.
        steps: how many batches; or
        epochs: how many times to go through the data.
        seed: of the shuffling.

    Raises:
        TypeError: a leaf of the data is not a tensor.
        ValueError: the leaves differ in length, are shorter than a batch, or not one of steps and epochs is given.

    >>> x, y = torch.zeros(100, 2), torch.zeros(100)
    >>> len(Batches((x, y), 32, epochs=10))
    30
    """

    data: Tree
    batch_size: int
    steps: int | None = None
    epochs: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        sizes: dict[str, int] = {}
        for path, leaf in tree.leaves_with_paths(self.data):
            if not isinstance(leaf, Tensor) or not leaf.ndim:
                raise TypeError(
                    f"Batches: data at {path!r} is {_kind(leaf)}; expected a tensor with an axis of examples"
                )
            sizes[path] = len(leaf)
        if len({*sizes.values()}) != 1:
            raise ValueError(
                f"Batches: every leaf of data needs the same number of examples, got {sizes or 'no leaves'}"
            )
        if not 1 <= self.batch_size <= self.examples:
            raise ValueError(f"Batches: batch_size must be 1 to {self.examples}, the examples, got {self.batch_size}")
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("Batches: say how long to train, with either steps=... or epochs=...")
        if len(self) < 1:
            raise ValueError(f"Batches: steps={self.steps}, epochs={self.epochs} gives no batches")

    def __repr__(self) -> str:
        length = f"steps={self.steps}" if self.epochs is None else f"epochs={self.epochs}"
        return f"Batches({self.examples} examples, {self.batch_size}, {length}, seed={self.seed})"

    @property
    def examples(self) -> int:
        """How many examples there are."""
        return len(tree.leaves(self.data)[0])

    def __len__(self) -> int:
        return self.steps if self.epochs is None else self.epochs * (self.examples // self.batch_size)  # pyright: ignore[reportReturnType]

    def __iter__(self) -> Iterator[Tree]:
        return (_gather(self.data, rows) for rows in self.indices())

    def indices(self) -> Iterator[Tensor]:
        """Yield the indices of each batch's examples."""
        return itertools.islice(self._shuffled(), len(self))

    def _shuffled(self) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        device = tree.leaves(self.data)[0].device
        while True:
            order = torch.randperm(self.examples, generator=generator).to(device)
            yield from order[: self.examples // self.batch_size * self.batch_size].split(self.batch_size)


def _copied(batch: Any) -> Any:
    return optree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, batch)


def _kind(leaf: Any) -> str:
    return "a 0-d tensor" if isinstance(leaf, Tensor) else f"a {type(leaf).__name__}"


def _gather(data: Tree, rows: Tensor) -> Tree:
    return tree.map(lambda leaf: leaf[rows], data)


class Reader:
    """Reads batches in blocks of one size, which :func:`pick` takes apart inside the compiled function."""

    def __init__(self, batches: Iterable[Any], size: int) -> None:
        self.size = size
        self._data = batches.data if isinstance(batches, Batches) else None
        self._source = batches.indices() if isinstance(batches, Batches) else iter(batches)

    def read(self, wanted: int) -> tuple[int, list[Any]]:
        """Return how many batches came, at most ``wanted``, in blocks; the last one is filled up with its last."""
        found = [*itertools.islice(self._source, wanted)]
        # copies, because a tensor that comes twice is another program for the compiler
        full = found + [_copied(found[-1]) for _ in range(-len(found) % self.size)]
        blocks = [tuple(full[i : i + self.size]) for i in range(0, len(full), self.size)]
        return len(found), blocks if self._data is None else [(self._data, torch.stack(block)) for block in blocks]


def pick(block: Any, at: int, gathers: bool) -> Any:
    """Return one batch of a block."""
    return _gather(block[0], block[1][at]) if gathers else block[at]
