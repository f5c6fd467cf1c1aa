"""The loss as a function of a tree of parameters, for links that evaluate it themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch  # pyright: ignore[reportAttributeAccessIssue]
from torch._subclasses import FakeTensor

from functopt import tree
from functopt.base import apply_updates
from functopt.numerics import accumulator_dtype
from functopt.tree import Tree

__all__ = ["Line", "choose", "holds", "value_and_grad", "value_and_grad_from_state"]


def value_and_grad(value_fn: Callable[[Tree], Any], params: Tree) -> tuple[Tensor, Tree]:
    """Return the loss, in float32 at least, and its gradient.

    A loss that only knows how to compute both together, such as a closure that calls ``backward``, has a method
    ``value_and_grad`` for it.
    """
    own = getattr(value_fn, "value_and_grad", None)
    if own is not None:
        value, grad = own(params)
    else:
        # a flat tuple: torch's pytrees do not know ours, and the compiler not what they make of packed ones
        leaves: list[Tensor] = []
        tree.map(leaves.append, params)
        at, value = torch.func.grad_and_value(lambda p: _scalar(value_fn(_refilled(params, p))))(tuple(leaves))
        grad = _refilled(params, at)
    return _wide(value), grad


def _refilled(like: Tree, leaves: Iterable[Tensor]) -> Tree:
    rest = iter(leaves)
    return tree.map(lambda _: next(rest), like)


def _scalar(value: Any) -> Tensor:
    if not isinstance(value, Tensor) or value.ndim:
        got = f"shape {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise TypeError(f"value_fn must return the loss as a 0-d tensor, got {got}")
    return value


def _wide(value: Tensor) -> Tensor:
    return value.to(accumulator_dtype(value.dtype))


def choose(condition: Tensor, new: Tree, old: Tree) -> Tree:
    """Return ``new`` where the condition, a 0-d tensor, holds, else ``old``, in the dtypes of ``old``."""
    return tree.map(lambda a, b: b if a is b else torch.where(condition, a.to(b.dtype), b), new, old)


def holds(condition: Tensor) -> bool:
    """Tell whether a condition is known to be true, of all members if there are several.

    Steps that are only taken where something does not hold yet need not be taken any more. To know it means to wait for
    the device, which is worth it where a step evaluates the loss. A graph that is being compiled knows nothing.
    """
    if torch.compiler.is_compiling():
        return False
    while _functorch.is_functorch_wrapped_tensor(condition):
        condition = _functorch.get_unwrapped(condition)
    return not isinstance(condition, FakeTensor) and not condition.is_meta and bool(condition.all())


class Line:
    """The loss along a direction: ``φ(t) = f(p + t·u)``, evaluated where a step of ``t`` really arrives."""

    def __init__(self, value_fn: Callable[[Tree], Any], params: Tree, updates: Tree) -> None:
        self.value_fn, self.params, self.updates = value_fn, params, updates

    def scaled(self, t: Tensor) -> Tree:
        """Return the updates of a step of ``t``."""
        return tree.map(lambda u: (t * u).to(u.dtype), self.updates)

    def value(self, t: Tensor) -> Tensor:
        """Return the loss at ``t``."""
        return _wide(_scalar(self.value_fn(apply_updates(self.params, self.scaled(t)))))

    def value_and_grad(self, t: Tensor) -> tuple[Tensor, Tree, Tensor]:
        """Return the loss at ``t``, its gradient, and the slope ``φ'(t) = ⟨∇f, u⟩``."""
        value, grad = value_and_grad(self.value_fn, apply_updates(self.params, self.scaled(t)))
        return value, grad, tree.dot(grad, self.updates)

    def start(self, value: Any, grad: Tree) -> tuple[Tensor, Tree, Tensor]:
        """Return the same at 0, evaluated only if the loss or its gradient is not given."""
        if value is None or grad is None:
            found, slope_of = value_and_grad(self.value_fn, self.params)
            value, grad = found if value is None else value, slope_of if grad is None else grad
        value = _wide(torch.as_tensor(value, device=tree.leaves(self.params)[0].device))
        return value, grad, tree.dot(grad, self.updates)


def value_and_grad_from_state(value_fn: Callable[..., Any]) -> Callable[..., tuple[Tensor, Tree]]:
    """Return a function that looks up loss and gradient where a line search has left them, or else computes them.

    A search has evaluated both at the point to which it goes. Where the loss is the same function at every step (no
    batches), they need not be computed again: ``value, grad = value_and_grad_from_state(loss)(params, state=state)``.
    Before the first step, and after a search that found no finite value, they are computed. Under ``torch.compile`` and
    where members of a ``vmap`` differ in this they always are, and chosen from.

    Args:
        value_fn: the loss, a function of the parameters and of what else the returned function is given.

    Returns:
        ``(params, *args, state, **kwargs) -> (value, grad)``.

    Raises:
        ValueError: (by what it returns) there is no loss or no gradient in the state.

    >>> tx = lbfgs()
    >>> value, grad = value_and_grad_from_state(loss)(params, state=tx.init(params))
    >>> value, grad
    (tensor(5.), {'w': tensor([ 2., -4.])})
    """

    def look_up(params: Tree, *args: Any, state: Tree, **kwargs: Any) -> tuple[Tensor, Tree]:
        try:
            value, grad = tree.get(state, "value"), tree.get(state, "grad")
        except KeyError as missing:
            raise ValueError(f"value_and_grad_from_state: {missing.args[0]}") from None
        if not tree.leaves(grad):
            raise ValueError("value_and_grad_from_state: the state has no gradient; make the search with store_grad")
        if holds(value.isfinite()):
            return value, grad
        fresh = value_and_grad(lambda p: value_fn(p, *args, **kwargs), params)
        return choose(value.isfinite(), (value, grad), fresh)

    return look_up
