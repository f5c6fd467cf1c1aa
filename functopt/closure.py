"""A closure, as classic training loops have it, as a function of the parameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import optree
import torch
from torch import Tensor

from functopt import tree
from functopt.base import Transform
from functopt.tree import Tree

__all__ = ["ClosureLoss", "takes_extra"]


class ClosureLoss:
    """The loss of a closure that computes it for a module, and its gradients with ``backward``, as a function.

    The parameters of the module are changed for the evaluation only, and so are their gradients.

    Args:
        closure: returns the loss, after it has brought its gradient into the parameters.
        params: the parameters, by key.
    """

    def __init__(self, closure: Callable[[], Any], params: Mapping[Any, Tensor]) -> None:
        self.closure, self.params = closure, params

    def __call__(self, values: Tree) -> Any:
        """Return the loss at the values of some or all parameters, a dict by key or packed."""
        with self._at(values):
            return self._loss()

    def value_and_grad(self, values: Tree) -> tuple[Tensor, Tree]:
        """Return the loss and its gradient, a tree like the values; zeros where the closure leaves none."""
        with self._at(values):
            loss = self._loss()
            found = {key: self.params[key].grad for key in tree.unpack(values)}
            grads = {key: torch.zeros_like(self.params[key]) if g is None else g.clone() for key, g in found.items()}
        layout = tree.layout_of(values)
        return loss, grads if layout is None else layout.pack(grads)

    def _loss(self) -> Tensor:
        with torch.enable_grad():
            loss = self.closure()
        if not isinstance(loss, Tensor):
            raise TypeError(f"StatefulOptimizer: the closure must return its loss, got a {type(loss).__name__}")
        return loss.detach()

    @contextmanager
    def _at(self, values: Tree) -> Iterator[None]:
        # copies of the gradients too: those of a compiled step lie in a buffer that new ones are moved to
        own = self.params.items()
        before = {key: (p.detach().clone(), p.grad, None if p.grad is None else p.grad.clone()) for key, p in own}
        with torch.no_grad():
            try:
                for key, value in tree.unpack(values).items():
                    self.params[key].copy_(value)
                for param in self.params.values():
                    param.grad = None
                yield
            finally:
                for key, param in self.params.items():
                    value, grad, content = before[key]
                    param.copy_(value)
                    param.grad = grad if grad is None or content is None else grad.copy_(content)


def takes_extra(tx: Transform, name: str) -> bool:
    """Tell whether some part of an optimizer uses an extra."""
    if name in tx.__dict__["_takes"] or any(
        name in inspect.signature(f).parameters for f in (tx._transform, tx._write) if f
    ):
        return True
    arguments: Any = tx._call[1:] if tx._call else ()
    parts = optree.tree_leaves(arguments, none_is_leaf=True)
    return any(takes_extra(part, name) for part in parts if isinstance(part, Transform))
