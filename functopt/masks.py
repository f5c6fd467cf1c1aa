"""Masks: trees of bools that say which leaves something is done to, and trees with holes where it is not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from functopt import tree
from functopt.tree import Tree

__all__ = ["Mask", "cut", "fill", "mask_of", "prefix_of", "step_on", "values_of"]

Mask = Tree | Callable[[Tree], Tree] | None


def mask_of(mask: Mask, params: Tree, who: str) -> Tree:
    """Return a mask as a tree of bools that is a prefix of ``params``; none at all is True.

    Raises:
        TypeError: an entry is not a bool.
        ValueError: it is no prefix of ``params``.
    """
    return True if mask is None else prefix_of(mask, params, who, bool, "the mask", "True or False")


def prefix_of(given: Tree, params: Tree, who: str, kind: type, what: str, expected: str) -> Tree:
    """Return a tree, or what a function makes of the parameters, once it is a prefix with leaves of one kind."""
    params = tree.unpack(params)
    # trimmed, because the parameters may be only those that have a gradient at this step
    found: Any = given(params) if callable(given) else tree.trim(given, params)
    if not all(isinstance(leaf, kind) for leaf in values_of(found)):
        # paths only here: torch.compile cannot trace them
        path, leaf = next((p, leaf) for p, leaf in tree.leaves_with_paths(found) if not isinstance(leaf, kind))
        raise TypeError(f"{who}: {what} at {path!r} is {leaf!r}; expected {expected}")
    problem = tree.prefix_problem(found, params)
    if problem:
        raise ValueError(f"{who}: {what} {'are' if what.endswith('s') else 'is'} no prefix of params: {problem}")
    return found


def values_of(node: Tree) -> list[Any]:
    """Return the leaves of a tree that are no tensors; ``tree.leaves`` cannot be traced with these."""
    parts = tree.children(node)
    if not parts:
        return [] if isinstance(node, (tuple, list, dict)) or node is None else [node]
    return [leaf for _, part in parts for leaf in values_of(part)]


# A leaf that is left out is replaced by (), a node without leaves: the tree keeps its names, and whatever maps over
# the leaves passes by. Hypers and masks of the whole tree are prefixes of one with holes.


def cut(values: Tree, chosen: Tree, who: str) -> Tree:
    """Return a tree in which the leaves that are not chosen are ``()``.

    Raises:
        TypeError: the tree is packed.
    """
    if tree.layout_of(values) is not None:
        raise TypeError(f"{who}: the parameters are packed, and single leaves cannot be left out of that: unpack them")
    return tree.map(lambda leaf, on: leaf if on else (), values, chosen)


def fill(part: Tree, whole: Tree) -> Tree:
    """Return ``part`` with the leaves of ``whole`` in its holes."""
    if isinstance(whole, Tensor):
        return part if isinstance(part, Tensor) else whole
    below = dict(tree.children(part))
    nodes = tree.children(whole)
    return tree.rebuild(whole, [key for key, _ in nodes], [fill(below[key], node) for key, node in nodes])


Step = Callable[..., tuple[Tree, Tree]]


def step_on(
    chosen: Tree,
    step: Step,
    who: str,
    updates: Tree,
    state: Tree,
    params: Tree,
    hypers: Mapping[str, Any],
    extras: Mapping[str, Any],
) -> tuple[Tree, Tree]:
    """Take the step of a transform on the chosen leaves: its result has holes for the others.

    Of the extras it gets its part of those that are trees like the parameters, and ``value_fn`` as a function of its
    part. If no leaf is chosen there is no step, and the state stays.
    """
    part = cut(params, chosen, who)
    if not tree.leaves(part):
        return part, state
    own = {name: _own(name, value, params, chosen) for name, value in extras.items()}
    return step(cut(updates, chosen, who), state, part, hypers, **own)


def _own(name: str, extra: Any, params: Tree, chosen: Tree) -> Any:
    if name == "value_fn":
        return lambda part: extra(fill(part, params))
    if tree.children(extra) and not tree.prefix_problem(extra, params, exact=True):
        return cut(extra, chosen, name)
    return extra
