"""Fewer, larger leaves: one packed tensor for all of them, or one stack for all of a shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from functopt import tree
from functopt.base import Transform
from functopt.combine import combinator
from functopt.hypers import Hypers
from functopt.tree import Tree

__all__ = ["flatten", "stacked"]


@combinator
def flatten(inner: Transform) -> Transform:
    """Run an optimizer on packed leaves: its state is packed, and a step packs gradients and parameters.

    The results are the same. To spare the packing at every step keep the parameters packed yourself (:func:`pack
    <functopt.pack>`, after which neither this nor anything else is needed), or use ``StatefulOptimizer(compile=True)``.

    Args:
        inner: the optimizer. Every link of it must be one that runs packed (scope ``"element"``, ``"tree"`` or
            ``"leaf"``, see :func:`link <functopt.link>`).

    Raises:
        ValueError: a link does not run packed; the message names it.

    >>> tx = flatten(lamb(lr=0.1))
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.8419, -2.1581])}
    """
    beyond = inner.links_beyond("element", "tree", "leaf")
    if beyond:
        raise ValueError(
            f"flatten: {beyond[0]} cannot run on packed leaves, because its rule depends on their shapes or on how "
            "they are grouped. Leave it unpacked; if each of its leaves is done by itself, stacked() runs it on "
            "stacks of leaves of one shape."
        )

    def init(params: Tree) -> Tree:
        return inner._init(_packed(params))

    def transform(updates: Tree, state: Tree, params: Tree, hypers: Hypers, **extras: Any) -> tuple[Tree, Tree]:
        flat = _packed(params, _packed_node(state))
        out, state = inner._transform(_packed(updates, flat), state, flat, hypers, **_extras(extras, params, flat))
        return _like(out, params), state

    def write(grads: Tree, state: Tree, params: Tree, hypers: Hypers, **extras: Any) -> tuple[Tree, Tree]:
        flat = _packed(params, _packed_node(state))
        new, state = inner.run(_packed(grads, flat), state, flat, hypers, **_extras(extras, params, flat))
        return _like(new, params), state

    return Transform(init, transform, write=write if inner.writes else None, hypers=inner.hypers, scopes=inner._scopes)


def _packed(values: Tree, like: Tree = None) -> Tree:
    return values if tree.layout_of(values) is not None else tree.pack(values, like)


def _extras(extras: dict[str, Any], params: Tree, flat: Tree) -> dict[str, Any]:
    """Return extras for packed parameters: the gradient packed, the loss as a function of them."""
    out = dict(extras)
    if "grad" in out:
        out["grad"] = _packed(out["grad"], flat)
    if "value_fn" in out:
        out["value_fn"] = lambda at: extras["value_fn"](_like(at, params))
    return out


def _packed_node(state: Tree) -> Tree:
    """Return a packed tree in a state, which knows the layout of the parameters; None if there is none."""
    layout = tree.layout_of(state)
    if layout is not None:
        return state
    return next((node for _, part in tree.children(state) if (node := _packed_node(part)) is not None), None)


def _like(values: Tree, params: Tree) -> Tree:
    return values if tree.layout_of(params) is not None else tree.unpack(values)


@combinator
def stacked(inner: Transform) -> Transform:
    """Run an optimizer on stacks: every leaf of the parameters stands for several, along its first axis.

    It is ``vmap`` over that axis, so that the program has kernels for each shape and not for each leaf: for rules that
    need the shape of a leaf (factored moments, matrix methods) and therefore do not run packed. The state is a tuple:
    one of ``inner`` for all stacks of one length.

    Args:
        inner: the optimizer. Every link must do each leaf by itself (scope ``"element"``, ``"leaf"`` or ``"matrix"``).
            Its hypers are the same for all leaves.

    Raises:
        ValueError: a link looks at several leaves, or a leaf of the parameters is 0-d; the message names it.

    >>> stacks, unstack = tree.by_shape(params)
    >>> tx = stacked(adafactor())
    >>> stacks, state = tx.update(tree.by_shape(grads)[0], tx.init(stacks), stacks)
    """
    beyond = inner.links_beyond("element", "leaf", "matrix")
    if beyond:
        raise ValueError(f"stacked: {beyond[0]} looks at several leaves at once, which stand in different stacks")

    def init(params: Tree) -> tuple[Tree, ...]:
        for path, leaf in tree.leaves_with_paths(params):
            if not leaf.dim():
                raise ValueError(f"stacked: {path!r} has no axis along which leaves are stacked, see tree.by_shape")
        return tuple(tree.owned(torch.func.vmap(inner._init)(alike)) for alike in _by_length(params, params))

    def over(step: Any, values: Tree, state: Tree, params: Tree, hypers: Hypers, extras: Any) -> tuple[Tree, Tree]:
        new: dict[int, Tensor] = {}
        states = []
        for value, own, param in zip(_by_length(values, params), state, _by_length(params, params), strict=True):
            inputs, outputs = (value, own, param), (value, own)

            # by way of flat tuples: what vmap does with trees takes long to trace
            def one(*leaves: Tensor, inputs: Any = inputs, outputs: Any = outputs) -> tuple[Tensor, ...]:
                return tuple(_flat(step(*_filled(inputs, leaves), hypers, **extras), outputs))

            done, own = _filled(outputs, torch.func.vmap(one)(*_flat(inputs, inputs)))
            new.update(done)
            states.append(own)
        return _filled(params, [new[i] for i in range(len(new))]), tuple(states)

    def transform(updates: Tree, state: Tree, params: Tree, hypers: Hypers, **extras: Any) -> tuple[Tree, Tree]:
        return over(inner._transform, updates, state, params, hypers, extras)

    def write(grads: Tree, state: Tree, params: Tree, hypers: Hypers, **extras: Any) -> tuple[Tree, Tree]:
        return over(inner.run, grads, state, params, hypers, extras)

    return Transform(init, transform, write=write if inner.writes else None, hypers=inner.hypers, scopes=inner._scopes)


def _by_length(values: Tree, params: Tree) -> list[dict[int, Tensor]]:
    """Return the leaves by their place, those together whose parameters are stacks of one length."""
    groups: dict[int, dict[int, Tensor]] = {}
    for i, (leaf, stack) in enumerate(zip(_flat(values, params), _flat(params, params), strict=True)):
        groups.setdefault(stack.shape[0], {})[i] = leaf
    return [*groups.values()]


def _flat(values: Tree, like: Tree) -> list[Tensor]:
    """Return the leaves in the order of ``like``."""
    found: list[Tensor] = []
    tree.map(lambda _, leaf: found.append(leaf), like, values)
    return found


def _filled(like: Tree, leaves: Sequence[Tensor]) -> Tree:
    """Return a tree of the structure of ``like`` with other leaves."""
    rest = [*reversed(leaves)]
    return tree.map(lambda _: rest.pop(), like)
