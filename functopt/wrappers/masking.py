"""Transforms of some leaves: masked, freeze, selective_transform."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from functopt import tree
from functopt.base import Transform, apply_updates, state_class
from functopt.combine import combinator
from functopt.masks import Mask, cut, fill, mask_of, step_on
from functopt.numerics import where
from functopt.tree import Tree
from functopt.wrappers.common import check_inner, check_state
from functopt.wrappers.gate import Run, gate

__all__ = ["MaskedState", "freeze", "masked", "selective_transform"]


@state_class
class MaskedState(NamedTuple):
    """The state of what is inside, with ``()`` in the place of every leaf outside the mask."""

    inner: Tree


def _on_part(who: str, inner: Transform, mask: Mask, train: bool) -> Transform:
    """Run a transform where the mask says ``train``; elsewhere updates pass, or are zero if the mask freezes."""
    check_inner(who, inner)

    def chosen(params: Tree) -> Tree:
        found = mask_of(mask, params, who)
        return found if train else tree.map(lambda on: not on, found)

    def init(params: Tree) -> MaskedState:
        part = cut(params, chosen(params), who)
        return MaskedState(inner._init(part) if tree.leaves(part) else ())

    def step(run: Run, updates: Tree, state: Any, params: Tree, hypers: Any, extras: Any) -> tuple[Tree, Tree]:
        check_state(who, state, MaskedState)
        out, new = step_on(chosen(params), run, who, updates, state.inner, params, hypers, extras)
        others = updates if train else tree.zeros_like(updates)
        return fill(out, apply_updates(params, others) if inner.writes else others), MaskedState(new)

    return gate(inner, step, init, hypers=inner._defaults, scopes=[*inner._scopes, (who, "matrix")])


@combinator
def masked(inner: Transform, mask: Mask) -> Transform:
    """Apply a transform to some leaves only; the updates of the others pass through unchanged.

    Leaves outside the mask have no state: where the parameters have a leaf, it has ``()`` there. ``inner`` sees the
    tree with these holes, so that global norms are those of its leaves alone; its hypers and masks may be given for the
    whole tree. ``value_fn`` is for it the loss as a function of its leaves.

    Beware: as in optax, what passes through is still added to the parameters. ``masked(sgd(0.1), mask)`` alone *adds*
    the gradient outside the mask; :func:`selective_transform` leaves those parameters where they are.

    Args:
        inner: any transform.
        mask: a tree of bools that is a prefix of the parameters, or a function from the parameters to one: whether a
            leaf is transformed.

    Raises:
        TypeError: ``inner`` is not a transform, or an entry of the mask is not a bool.
        ValueError: the mask is no prefix of the parameters.

    >>> tx = masked(set_to_zero(), {"w": True})
    >>> tx.transform(grads, tx.init(params), params)[0]
    {'w': tensor([0., 0.])}
    """
    return _on_part("masked", inner, mask, train=True)


@combinator
def selective_transform(optimizer: Transform, *, freeze_mask: Mask) -> Transform:
    """Train some leaves with an optimizer and leave the others where they are.

    ``u ← optimizer(u)`` where the mask is False, and 0 where it is True. Frozen leaves have no state, and take no part
    in global norms. Its hypers are those of ``optimizer``, where optax's would be those of a partition.

    Args:
        optimizer: any optimizer.
        freeze_mask: a tree of bools that is a prefix of the parameters, or a function from the parameters to one:
            whether a leaf is frozen.

    Raises:
        TypeError: ``optimizer`` is not a transform, or an entry of the mask is not a bool.
        ValueError: the mask is no prefix of the parameters.

    >>> tx = selective_transform(adam(), freeze_mask={"w": True})
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 1., -2.])}
    """
    return _on_part("selective_transform", optimizer, freeze_mask, train=False)


@combinator
def freeze(mask: Mask = True) -> Transform:
    """Hold some leaves where they are: ``u ← 0`` where the mask is True, else ``u`` unchanged, bit for bit.

    It stands last in a chain, where nothing is added to what it made zero. What stands before still computes, and keeps
    state for, the frozen leaves; :func:`selective_transform` spares that.

    Args:
        mask: a tree of bools that is a prefix of the parameters, or a function from the parameters to one: whether a
            leaf is frozen.

    Raises:
        TypeError: an entry of the mask is not a bool.
        ValueError: the mask is no prefix of the parameters.

    >>> tx = chain(adam(), freeze({"w": True}))
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 1., -2.])}
    """

    def transform(updates: Tree, state: Tree, params: Tree, hypers: Any, **extras: Any) -> tuple[Tree, Tree]:
        chosen = mask_of(mask, params, "freeze")
        return tree.map(lambda u, on: where(on, torch.zeros_like(u), u), updates, chosen), state

    return Transform(lambda _: (), transform, scopes=[("freeze", "element" if isinstance(mask, bool) else "leaf")])
