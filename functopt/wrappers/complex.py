"""Complex parameters for optimizers of real ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor

from functopt import tree
from functopt.base import Transform, state_class
from functopt.combine import combinator
from functopt.hypers import Hypers
from functopt.tree import Tree
from functopt.wrappers.common import check_inner

__all__ = ["RealAndImaginary", "split_real_and_imaginary"]


@state_class
class RealAndImaginary(NamedTuple):
    """The two parts of a complex tensor, in its place in a tree."""

    real: Tensor
    imaginary: Tensor


@combinator
def split_real_and_imaginary(inner: Transform) -> Transform:
    """Let an optimizer see each complex parameter as two real ones, as every optimizer of torch does.

    Gradients are torch's, ``∂f/∂x + i·∂f/∂y`` for ``z = x + iy``, whose opposite is the direction of steepest descent;
    jax's are their conjugates. The state has a pair in the place of every complex parameter. Real parameters pass as
    they are. Kreutz-Delgado, "The Complex Gradient Operator and the CR-Calculus" (2009).

    It is the outermost of what is put together: ``split_real_and_imaginary(chain(...))``.

    Args:
        inner: any optimizer.

    Raises:
        TypeError: ``inner`` is not a transform.

    >>> tx, z = split_real_and_imaginary(sgd(lr=0.1)), torch.tensor([1.0 + 2.0j])
    >>> tx.update(z, tx.init(z), z)[0]
    tensor([0.9000+1.8000j])
    """
    check_inner("split_real_and_imaginary", inner)

    def init(params: Tree) -> Tree:
        return inner._init(_split(params))

    def split(step: Callable[..., tuple[Tree, Tree]]) -> Callable[..., tuple[Tree, Tree]]:
        def run(updates: Tree, state: Tree, params: Tree, hypers: Hypers, **extras: Any) -> tuple[Tree, Tree]:
            if "grad" in extras:
                extras["grad"] = _split(extras["grad"])
            if "value_fn" in extras:
                value_fn = extras["value_fn"]
                extras["value_fn"] = lambda params: value_fn(_merge(params))
            out, state = step(_split(updates), state, _split(params), hypers, **extras)
            return _merge(out), state

        return run

    tx = Transform(
        init,
        split(inner._transform),
        write=split(inner.run) if inner.writes else None,
        hypers=inner.hypers,
        scopes=inner._scopes,
    )
    tx.__dict__["_takes_complex"] = True
    return tx


def _split(values: Tree) -> Tree:
    return tree.map(lambda x: RealAndImaginary(x.real, x.imag) if x.is_complex() else x, values)


def _merge(values: Tree) -> Tree:
    pair = lambda node: isinstance(node, RealAndImaginary)
    return optree.tree_map(lambda x: torch.complex(*x) if pair(x) else x, values, is_leaf=pair)
