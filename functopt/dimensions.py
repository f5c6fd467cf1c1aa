"""Which axes of a tensor make a matrix of it, and which leaves of a tree are matrices."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor

from functopt import tree
from functopt.hypers import hashable, show
from functopt.sharded import is_sharded
from functopt.tree import Tree

__all__ = [
    "Axes",
    "DimensionNumbers",
    "GaLoreDimensionNumbers",
    "MatrixLeaves",
    "MuonDimensionNumbers",
    "matrix_axes",
    "only_matrices",
    "spread_like",
    "whole",
    "with_matrices",
]

Ellipsis_ = type(...)


class MuonDimensionNumbers(NamedTuple):
    """Which axes of a tensor are the inputs of the linear map that it is, and which the outputs.

    By default those of ``torch.nn.Linear``, whose weight is (outputs, inputs); optax has them the other way around.
    The remaining axes count matrices, each of which is treated alone. ``...`` stands for all remaining axes, so that
    ``MuonDimensionNumbers(reduction_axis=...)`` makes one matrix of any linear or convolutional weight.
    """

    reduction_axis: Any = 1  # an axis, a tuple of axes, or ...
    output_axis: Any = 0


GaLoreDimensionNumbers = MuonDimensionNumbers

DimensionNumbers = MuonDimensionNumbers | Tree | Callable[[Tree], Tree] | None


def _product(shape: torch.Size, axes: tuple[int, ...]) -> int:
    return math.prod([shape[i] for i in axes])  # a list: torch.compile has no generators here


@dataclass(frozen=True)
class Axes:
    """The axes of one leaf by their role; a leaf that is no matrix has none that are reduced."""

    batch: tuple[int, ...] = ()
    reduction: tuple[int, ...] = ()
    output: tuple[int, ...] = ()

    @property
    def swapped(self) -> bool:
        """Whether the outputs come first where the tensor is stored."""
        return self.output < self.reduction

    def sizes(self, shape: torch.Size) -> tuple[int, int]:
        """Return the number of inputs, and that of outputs."""
        return _product(shape, self.reduction), _product(shape, self.output)

    def matrix(self, x: Tensor) -> Tensor:
        """Return a tensor as a matrix of inputs by outputs, or as a stack of such."""
        stack = (_product(x.shape, self.batch),) if self.batch else ()
        return x.permute(self.batch + self.reduction + self.output).reshape(stack + self.sizes(x.shape))

    def tensor(self, matrix: Tensor, shape: torch.Size) -> Tensor:
        """Turn a matrix back into the tensor of this shape."""
        order = self.batch + self.reduction + self.output
        back = sorted(range(len(order)), key=lambda i: order[i])
        return matrix.reshape([shape[i] for i in order]).permute(back)


_NO_MATRIX = Axes()
LINEAR = MuonDimensionNumbers()


@dataclass(frozen=True)
class _Leaf:
    """What is said of a leaf, as something that trees take for a leaf."""

    numbers: MuonDimensionNumbers | None


def _as_leaves(node: Tree) -> Tree:
    if node is None or isinstance(node, (MuonDimensionNumbers, _Leaf)):
        return node if isinstance(node, _Leaf) else _Leaf(node)
    below = tree.children(node)
    if not below:
        raise TypeError(f"weight_dimension_numbers: expected MuonDimensionNumbers or None at a leaf, got {node!r}")
    return tree.rebuild(node, [key for key, _ in below], [_as_leaves(child) for _, child in below])


def _axes_of(who: str, numbers: MuonDimensionNumbers | None, p: Tensor) -> Axes:
    if numbers is None:
        return _NO_MATRIX
    named: list[tuple[int, ...] | None] = []
    for axes in numbers:
        if isinstance(axes, Ellipsis_):
            named.append(None)
            continue
        axes = (axes,) if isinstance(axes, int) else tuple(axes)
        if not all(-p.ndim <= axis < p.ndim for axis in axes):
            raise ValueError(f"{who}: {numbers} names an axis that a leaf of shape {list(p.shape)} does not have")
        named.append(tuple(axis % p.ndim for axis in axes))
    taken = [axis for axes in named if axes is not None for axis in axes]
    rest = tuple(axis for axis in range(p.ndim) if axis not in taken)
    reduction, output = (rest if axes is None else axes for axes in named)
    if len({*reduction, *output}) < len(reduction) + len(output) or not reduction or not output:
        raise ValueError(
            f"{who}: the reduced axes {reduction} and the output axes {output} of a leaf of shape {list(p.shape)} must "
            "be different ones, and at least one each"
        )
    return Axes(() if None in named else rest, reduction, output)


def matrix_axes(who: str, numbers: DimensionNumbers, params: Tree, default: MuonDimensionNumbers = LINEAR) -> Tree:
    """Return the :class:`Axes` of every leaf.

    Args:
        who: the link, for errors.
        numbers: None: what has two axes is a matrix, with those of ``default``. One :class:`MuonDimensionNumbers`: what
            has two axes or more is. A prefix tree of them, with None for what is no matrix, or a function from the
            parameters to one.
        params: the parameters; only shapes count.
        default: the axes of a leaf with two.

    Raises:
        ValueError: axes do not exist or overlap, or the tree is no prefix of the parameters.
    """
    if callable(numbers):
        numbers = numbers(params)
    if numbers is None:
        return tree.map(lambda p: _axes_of(who, default if p.ndim == 2 else None, p), params)
    if isinstance(numbers, MuonDimensionNumbers):
        return tree.map(lambda p: _axes_of(who, numbers if p.ndim > 1 else None, p), params)
    # trimmed, because the parameters may be only some of them
    said = tree.trim(_as_leaves(numbers), params)
    problem = tree.prefix_problem(said, params)
    if problem:
        raise ValueError(f"{who}: weight_dimension_numbers is no prefix of params: {problem}")
    return tree.map(lambda p, leaf: _axes_of(who, leaf.numbers, p), params, said)


@dataclass(frozen=True)
class MatrixLeaves:
    """A mask: which leaves are matrices, or with ``others`` which are not; and in ``mask`` if there is one."""

    numbers: Any = None
    mask: Any = None
    others: bool = False

    def __post_init__(self) -> None:
        for name in ("numbers", "mask"):  # copied, so that nobody changes them later
            copied = optree.tree_map(lambda leaf: leaf, getattr(self, name), none_is_leaf=True)
            object.__setattr__(self, name, copied)

    def __hash__(self) -> int:
        return hash((self.others, hashable((self.numbers, self.mask))))

    def __repr__(self) -> str:
        return f"MatrixLeaves({show(self.numbers)}, {show(self.mask)}, {self.others})"

    def __call__(self, params: Tree) -> Tree:
        """Return a tree of bools."""
        axes = matrix_axes("MatrixLeaves", self.numbers, params)
        chosen = self.mask(params) if callable(self.mask) else self.mask
        chosen = True if chosen is None else tree.trim(chosen, params)
        return tree.map(lambda _, a, on: on and bool(a.reduction) != self.others, params, axes, chosen)


def only_matrices(values: Tree, axes: Tree) -> Tree:
    """Return a tree with ``()`` in the place of the leaves that are no matrices."""
    return tree.map(lambda x, a: x if a.reduction else (), values, axes)


def with_matrices(values: Tree, matrices: Tree) -> Tree:
    """Put what was done to the matrices in their places; the other leaves stay as they are."""
    return optree.tree_map(lambda x, new: x if isinstance(new, tuple) else new, values, matrices)


def whole(x: Any) -> Tensor:
    """Return a tensor that is spread over processes as a whole on each; a matrix cannot be turned in pieces."""
    return x.full_tensor() if is_sharded(x) else x


def spread_like(x: Tensor, like: Any) -> Tensor:
    """Spread a tensor that every process has whole as another one is spread, if it is."""
    if not is_sharded(like):
        return x
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(x, like.device_mesh, like.placements, src_data_rank=None)
