"""Flat layouts: the leaves of a tree side by side in a few large tensors."""

from __future__ import annotations

import weakref
from collections import namedtuple
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import optree
import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from functopt.numerics import accumulator_dtype
from functopt.tree.walk import Tree, children, layout_of, map, path_name, rebuild

__all__ = ["Layout", "by_shape", "pack", "ravel", "unpack"]

_LARGEST_BLOCK = 1024  # entries in a row
_SMALLEST_BLOCK = 16  # a row of float32 is then a cache line
_WASTE = 0.01  # what padding may add to the memory
_FAN = 64  # how many row sums are added at once


class Layout:
    """Where the leaves of a tree lie when they are packed.

    For each dtype and device there is one tensor of shape ``[rows, block]``, the smallest leaves first. A leaf takes
    whole rows, one after the other, and its last row is padded with zeros, so that no row belongs to two leaves: what
    is known for each leaf (a norm, a hyper, a mask) broadcasts as a column of one entry a row.

    A layout has two classes of named tuples, whose fields are these tensors: ``Packed``, for trees of tensors like the
    original one, and ``PackedScalars``, for trees with one number for each leaf, whose tensors have shape ``[leaves]``.
    """

    def __init__(self, leaves: Sequence[Tensor], spec: Any, block: int | None = None) -> None:
        self.positions: Tree = optree.tree_unflatten(spec, range(len(leaves)))
        self.shapes = [leaf.shape for leaf in leaves]
        self.kinds = [(leaf.dtype, leaf.device) for leaf in leaves]
        kinds = sorted({*self.kinds}, key=str)
        by_size = sorted(range(len(leaves)), key=lambda i: self.shapes[i].numel())
        own = [[i for i in by_size if self.kinds[i] == kind] for kind in kinds]
        self.fields = [_Field(kind, i, self.shapes, block) for kind, i in zip(kinds, own, strict=True)]
        names = [f"{field.dtype}_{field.device}".removeprefix("torch.").replace(":", "") for field in self.fields]
        self.blocks = self._node_class("Packed", names)
        self.scalars = self._node_class("PackedScalars", names)

    def _node_class(self, name: str, fields: Sequence[str]) -> Any:
        cls = namedtuple(name, fields)
        cls.layout = self  # pyright: ignore[reportAttributeAccessIssue]
        cls.__reduce__ = lambda node: (_restore, (name, self.positions, self.shapes, self.kinds, *node))  # pyright: ignore[reportAttributeAccessIssue]
        return cls

    @staticmethod
    def of(tree: Tree) -> Layout:
        """Return the layout of a tree: the same object for trees with equal structures, shapes, dtypes and devices."""
        leaves, spec = optree.tree_flatten(tree)
        if not leaves:
            raise ValueError("tree.pack: the tree has no leaves")
        if any(isinstance(leaf, FakeTensor) for leaf in leaves):  # its tensors must not outlive the fake mode
            return Layout(leaves, spec)
        key = (spec, *((leaf.shape, leaf.dtype, leaf.device) for leaf in leaves))
        layout = _known.get(key)
        if layout is None:
            layout = _known[key] = Layout(leaves, spec)
        return layout

    @property
    def size(self) -> int:
        """The number of scalars, padding not counted."""
        return sum(shape.numel() for shape in self.shapes)

    def pack(self, tree: Tree) -> Tree:
        """Return the ``Packed`` of a tree that has this layout's structure, shapes, dtypes and devices."""
        found: list[Any] = [None] * len(self.shapes)
        map(lambda i, leaf: found.__setitem__(i, leaf), self.positions, tree)
        for i, leaf in enumerate(found):
            if leaf.shape != self.shapes[i] or (leaf.dtype, leaf.device) != self.kinds[i]:
                path = path_name(optree.tree_paths(self.positions)[i])
                raise ValueError(
                    f"tree.pack: at {path!r} expected {list(self.shapes[i])} of {self.kinds[i]}, got "
                    f"{list(leaf.shape)} of {(leaf.dtype, leaf.device)}"
                )
        return self.blocks(*(field.pack([found[i] for i in field.indices]) for field in self.fields))

    def unpack(self, node: Tree) -> Tree:
        """Return the tree of a ``Packed`` or ``PackedScalars``, whose leaves are views of it; axes before are kept."""
        found: list[Any] = [None] * len(self.shapes)
        for field, tensor in zip(self.fields, node, strict=True):
            parts = field.unpack(tensor, self.shapes) if type(node) is self.blocks else tensor.unbind(-1)
            for i, part in zip(field.indices, parts, strict=True):
                found[i] = part
        return map(lambda i: found[i], self.positions)

    def spread(self, value: Tree, node: Tree) -> list[Any]:
        """Return for each field of ``node`` what broadcasts there: a number, or a tensor with an entry a leaf or row.

        Args:
            value: a ``PackedScalars``, or a prefix tree of the original tree with numbers and 0-d tensors.
            node: a ``Packed`` or ``PackedScalars`` of this layout.
        """
        if type(value) is self.scalars:
            columns: list[Any] = [*value]
        else:
            found: list[Any] = [None] * len(self.shapes)
            map(lambda i, below: found.__setitem__(i, below), self.positions, value)
            columns = [field.together([found[i] for i in field.indices]) for field in self.fields]
        if type(node) is self.scalars:
            return columns
        return [field.by_row(column) for field, column in zip(self.fields, columns, strict=True)]

    def numbers(self, values: Tree) -> Tree:
        """Return the ``PackedScalars`` of a prefix tree of numbers, bools and 0-d tensors."""
        columns = self.spread(values, self.full(0.0))
        return self.scalars(*(field.one_each(column) for field, column in zip(self.fields, columns, strict=True)))

    def choose(self, condition: Tree, new: Tree, old: Tree) -> Tree:
        """Return ``new``, a tree with packed nodes in it, with the leaves of ``old`` where the condition is false.

        Args:
            condition: a ``PackedScalars`` of bools.
            new: a tree; what is not packed stays as it is.
            old: a tree of the same structure.
        """
        if layout_of(new) is self:
            return map(torch.where, condition if type(new) is self.scalars else self.rows(condition), new, old)
        pairs = zip(children(new), children(old), strict=True)
        parts = [(key, self.choose(condition, a, b)) for (key, a), (_, b) in pairs]
        return rebuild(new, [key for key, _ in parts], [part for _, part in parts]) if parts else new

    def rows(self, scalars: Tree) -> Tree:
        """Return a ``Packed`` of one column from the scalars of the leaves, which broadcasts against a ``Packed``."""
        return self.blocks(*(field.by_row(column) for field, column in zip(self.fields, scalars, strict=True)))

    def zeros(self) -> Tree:
        """Return a ``Packed`` of zeros."""
        return self.blocks(*(field.zeros() for field in self.fields))

    def full(self, value: float) -> Tree:
        """Return a ``PackedScalars`` of one number, float32 at least."""
        return self.scalars(*(torch.full_like(field.sizes, value) for field in self.fields))

    def sums(self, node: Tree) -> Tree:
        """Return the ``PackedScalars`` of the sum of each leaf of a ``Packed``, in float32 at least."""
        return self.scalars(*(field.sums(tensor) for field, tensor in zip(self.fields, node, strict=True)))

    def means(self, node: Tree) -> Tree:
        """Return the ``PackedScalars`` of the mean of each leaf of a ``Packed``, in float32 at least."""
        sums = self.sums(node)
        return self.scalars(*(total / field.sizes for field, total in zip(self.fields, sums, strict=True)))

    def part(self, number: int, start: int, stop: int) -> tuple[Layout, Callable[[Tree], Tree]]:
        """Return the layout of some neighbours: leaves ``start`` to ``stop`` of a field, of a flat dict.

        With it comes a function that takes those leaves out of a packed node, or the packed nodes of a tree, as views.
        """
        field = self.fields[number]
        chosen = {*field.indices[start:stop]}
        keys = {key: i for key, i in self.positions.items() if i in chosen}
        empty = torch.empty((), dtype=field.dtype, device=field.device)
        like: Tree = {key: empty.expand(self.shapes[i]) for key, i in keys.items()}
        leaves, spec = optree.tree_flatten(like)
        layout = Layout(leaves, spec, field.block)
        rows = slice(field.first_rows[start], field.first_rows[stop])

        def take(node: Tree) -> Tree:
            if layout_of(node) is self:
                if type(node) is self.blocks:
                    return layout.blocks(node[number][rows])
                return layout.scalars(node[number][start:stop])
            parts = children(node)
            return rebuild(node, [key for key, _ in parts], [take(part) for _, part in parts]) if parts else node

        return layout, take

    def row_sums(self, node: Tree) -> list[Tensor]:
        """Return the sum of each row of a ``Packed``, in float32 at least."""
        return [field.row_sums(tensor) for field, tensor in zip(self.fields, node, strict=True)]


_known: weakref.WeakValueDictionary[Any, Layout] = weakref.WeakValueDictionary()


class _Field:
    """The rows of one dtype and device."""

    def __init__(
        self,
        kind: tuple[torch.dtype, torch.device],
        indices: list[int],
        shapes: list[torch.Size],
        block: int | None,
    ) -> None:
        self.dtype, self.device = kind
        self.indices = indices
        self.numels = [shapes[i].numel() for i in indices]
        self.block = block or _block_for(self.numels)
        counts = np.array([-(-n // self.block) for n in self.numels])  # rows of each leaf
        self.padding = [int(c) * self.block - n for c, n in zip(counts, self.numels, strict=True)]
        self.padded = any(self.padding)
        self.sizes = torch.tensor(self.numels, dtype=accumulator_dtype(self.dtype), device=self.device).clamp_min(1)
        self.leaf_of_row = torch.tensor(np.repeat(np.arange(len(counts)), counts), device=self.device)
        self.first_rows = [0, *np.cumsum(counts).tolist()]
        starts = np.repeat(np.cumsum(counts) - counts, counts)
        filled = np.repeat(self.numels, counts) - (np.arange(counts.sum()) - starts) * self.block
        self.filled = torch.tensor(
            np.minimum(filled, self.block)[:, None], dtype=torch.int32, device=self.device
        )  # entries of each row
        self.levels: list[tuple[Tensor, Tensor]] = []
        while counts.max(initial=1) != 1 or counts.min(initial=1) != 1:
            index, counts = _level(counts)
            present = torch.tensor(index >= 0, device=self.device)
            self.levels.append((torch.tensor(index.clip(0), device=self.device), present))

    def pack(self, parts: Sequence[Tensor]) -> Tensor:
        pieces = []
        for part, padding in zip(parts, self.padding, strict=True):
            pieces.append(part.reshape(-1))
            if padding:
                pieces.append(part.new_zeros(padding))
        return torch.cat(pieces).view(-1, self.block)

    def unpack(self, tensor: Tensor, shapes: list[torch.Size]) -> list[Tensor]:
        ahead = tensor.shape[:-2]
        sizes = [size for pair in zip(self.numels, self.padding, strict=True) for size in pair]
        pieces = tensor.flatten(-2).split(sizes, -1)[::2]  # one split: its derivative is one concatenation
        return [piece.view(ahead + shapes[i]) for piece, i in zip(pieces, self.indices, strict=True)]

    def together(self, values: list[Any]) -> Any:
        first = values[0]
        if all(value is first for value in values):
            return first
        if any(isinstance(value, Tensor) for value in values):
            like = next(value for value in values if isinstance(value, Tensor))
            return torch.stack([v if isinstance(v, Tensor) else like.new_tensor(v) for v in values])
        dtype = torch.bool if isinstance(first, bool) else accumulator_dtype(self.dtype)
        return torch.tensor(values, dtype=dtype, device=self.device)

    def one_each(self, value: Any) -> Tensor:
        if isinstance(value, Tensor):
            return value if value.ndim else value.repeat(len(self.numels))
        dtype = torch.bool if isinstance(value, bool) else accumulator_dtype(self.dtype)
        return torch.full((len(self.numels),), value, dtype=dtype, device=self.device)

    def zeros(self) -> Tensor:
        return torch.zeros(self.first_rows[-1], self.block, dtype=self.dtype, device=self.device)

    def by_row(self, column: Any) -> Any:
        if not isinstance(column, Tensor) or column.ndim == 0:
            return column
        return column.index_select(0, self.leaf_of_row).unsqueeze(-1)

    def row_sums(self, tensor: Tensor) -> Tensor:
        if self.padded:  # a rule may have made something else of its zeros, such as 0/0
            inside = torch.arange(self.block, dtype=torch.int32, device=tensor.device) < self.filled
            tensor = torch.where(inside, tensor, 0)
        return tensor.sum(-1, dtype=accumulator_dtype(self.dtype))

    def sums(self, tensor: Tensor) -> Tensor:
        # rows first, then rows in groups of one leaf: the same sum in the same order at every call, and about as
        # precise as a sum can be, where adding up by index is neither
        partial = self.row_sums(tensor)
        for index, present in self.levels:
            partial = torch.where(present, partial[index], 0).sum(-1)
        return partial


def _block_for(numels: Sequence[int]) -> int:
    """Return the longest row with which padding is no matter."""
    block = _LARGEST_BLOCK
    while block > _SMALLEST_BLOCK and sum(-n % block for n in numels) > _WASTE * sum(numels):
        block //= 2
    return block


def _level(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which partial sums to add next, -1 for none, as a row of indices for each new sum; and their counts."""
    groups = np.maximum(-(-counts // _FAN), 1)
    width = min(_FAN, int(counts.max(initial=1)))
    inside = np.arange(groups.sum()) - np.repeat(np.cumsum(groups) - groups, groups)  # number of the group in its leaf
    start = np.repeat(np.cumsum(counts) - counts, groups) + inside * _FAN
    length = np.minimum(np.repeat(counts, groups) - inside * _FAN, _FAN)
    column = np.arange(width)
    return np.where(column < length[:, None], start[:, None] + column, -1), groups


def _restore(
    name: str,
    positions: Tree,
    shapes: list[torch.Size],
    kinds: list[tuple[torch.dtype, torch.device]],
    *tensors: Tensor,
) -> Tree:
    """Rebuild a packed node that was pickled."""
    like = map(lambda i: torch.empty((), dtype=kinds[i][0], device=kinds[i][1]).expand(shapes[i]), positions)
    layout = Layout.of(like)
    return (layout.blocks if name == "Packed" else layout.scalars)(*tensors)


def pack(tree: Tree, like: Tree = None) -> Tree:
    """Put the leaves of a tree side by side: one tensor for each dtype and device.

    A program that works on a packed tree has as many kernels, and compiles as fast, as one with a single leaf. Every
    optimizer whose links have the scope ``"element"``, ``"tree"`` or ``"leaf"`` (see :func:`link <functopt.link>`) runs
    on packed parameters, gradients and state as they are, with the same results. Hypers and masks keep referring to
    the original tree.

    Args:
        tree: tensors.
        like: a packed tree of the same layout. Inside ``torch.compile`` it is needed, because a new layout cannot be
            made there.

    Returns:
        A named tuple (a pytree) of tensors of shape ``[rows, block]``. Each leaf begins a new row and is padded with
        zeros. Get the tree back with :func:`unpack`.

    Raises:
        ValueError: the tree has no leaves, or does not have the layout of ``like``.

    >>> flat, tx = pack(params), sgd(lr=0.1)
    >>> grads = torch.func.grad(lambda flat: loss(unpack(flat)))(flat)  # arrive packed
    >>> flat, state = tx.update(grads, tx.init(flat), flat)
    >>> unpack(flat)
    {'w': tensor([ 0.8000, -1.6000])}
    """
    layout = Layout.of(tree) if like is None else layout_of(like)
    if layout is None:
        raise ValueError(f"tree.pack: like is a {type(like).__name__}, expected a packed tree")
    return layout.pack(tree)


def unpack(tree: Tree) -> Tree:
    """Return the original tree of a packed one, as views of it.

    Args:
        tree: a packed tree, or any nesting with packed trees in it, such as an optimizer's state; what is not packed
            stays as it is. Leading axes (of members, say) are kept.
    """
    layout = layout_of(tree)
    if layout is not None:
        return layout.unpack(tree)
    parts = children(tree)
    return rebuild(tree, [key for key, _ in parts], [unpack(part) for _, part in parts]) if parts else tree


def ravel(tree: Tree, groups: Tree = None) -> tuple[Tree, Callable[[Tree], Tree]]:
    """Concatenate all leaves into one vector, and return it with the function that goes back.

    A flat vector, or a dict of them, is a pytree too: any layout-invariant optimizer runs on it. :func:`pack` is the
    same with padding, for all the others.

    Args:
        tree: tensors. If they share a dtype and device the result is one vector, otherwise a dict of vectors keyed
            by both, as ``"float32 on cpu"``.
        groups: a prefix tree of ``tree`` with a label at each leaf. Then the result is a dict by label, and hypers may
            be given by label: ``{"lr": {"body": 1e-4, "head": 1e-3}}``.

    Returns:
        ``(flat, unravel)``, where ``unravel(flat)`` has the structure of ``tree`` and its leaves are views of ``flat``.

    Raises:
        ValueError: the tree has no leaves, or ``groups`` is no prefix of it.
    """
    leaves, spec = optree.tree_flatten(tree)
    if not leaves:
        raise ValueError("tree.ravel: the tree has no leaves")
    positions = optree.tree_unflatten(spec, range(len(leaves)))
    shapes = [leaf.shape for leaf in leaves]
    kinds = [f"{str(leaf.dtype).removeprefix('torch.')} on {leaf.device}" for leaf in leaves]
    labels: list[Any] = [None] * len(leaves)
    map(lambda i, label: labels.__setitem__(i, label), positions, groups if groups is not None else "")

    def nested(make: Callable[[list[int]], Any]) -> Tree:
        out = {}
        for label in sorted({*labels}, key=str):
            own = [i for i in range(len(leaves)) if labels[i] == label]
            made = {kind: make([i for i in own if kinds[i] == kind]) for kind in sorted({kinds[i] for i in own})}
            out[label] = made if len(made) > 1 else next(iter(made.values()))
        return out if groups is not None else out[""]

    vectors: list[list[int]] = []  # the leaves in each vector

    def number(own: list[int]) -> int:
        vectors.append(own)
        return len(vectors) - 1

    numbers = nested(number)
    flat = map(lambda n: torch.cat([leaves[i].reshape(-1) for i in vectors[n]]), numbers)

    def unravel(flat: Tree) -> Tree:
        parts: list[Any] = [None] * len(shapes)

        def take(n: int, vector: Tensor) -> None:
            for i, piece in zip(vectors[n], vector.split([shapes[i].numel() for i in vectors[n]]), strict=True):
                parts[i] = piece.view(shapes[i])

        map(take, numbers, flat)
        return map(lambda i: parts[i], positions)

    return flat, unravel


def by_shape(tree: Tree) -> tuple[dict[str, Tensor], Callable[[dict[str, Tensor]], Tree]]:
    """Stack the leaves of each shape, dtype and device, and return the stacks with the function that goes back.

    Returns:
        ``(stacks, unstack)``: a dict of tensors with a leading axis, for :func:`stacked <functopt.stacked>`, and a
        function that returns the structure of ``tree``, whose leaves are views of the stacks.

    Raises:
        ValueError: the tree has no leaves.
    """
    leaves, spec = optree.tree_flatten(tree)
    if not leaves:
        raise ValueError("tree.by_shape: the tree has no leaves")
    positions = optree.tree_unflatten(spec, range(len(leaves)))
    members: dict[str, list[int]] = {}
    for i, leaf in enumerate(leaves):
        shape = "x".join(str(size) for size in leaf.shape) or "scalar"
        members.setdefault(f"{shape} {str(leaf.dtype).removeprefix('torch.')} on {leaf.device}", []).append(i)

    def unstack(stacks: dict[str, Tensor]) -> Tree:
        found: list[Any] = [None] * len(leaves)
        for name, own in members.items():
            for i, leaf in zip(own, stacks[name].unbind(), strict=True):
                found[i] = leaf
        return map(lambda i: found[i], positions)

    return {name: torch.stack([leaves[i] for i in own]) for name, own in members.items()}, unstack
