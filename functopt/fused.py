"""Compiled steps in place: parameters, gradients and state in flat buffers, and one graph over them."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from functopt import tree
from functopt.base import Transform
from functopt.closure import ClosureLoss, takes_extra
from functopt.compile import compile as compile_step
from functopt.eager import EagerStep, shows_gaps
from functopt.inplace import InPlace, Key, Values
from functopt.param_state import select
from functopt.stacks import Stacks
from functopt.tree import Tree

__all__ = ["CompiledStep"]


class CompiledStep:
    """Takes the steps of an :class:`InPlace` in one compiled graph.

    If the optimizer can run packed, the parameters become views of a flat buffer, so that the number of kernels does
    not depend on their number; gradients are moved into another as they arrive. Whatever puts other memory in their
    place (``zero_grad``, an assignment to ``.data`` or ``.grad``) costs a copy at the next step and nothing else. If
    it needs the shapes of parameters, there is such a buffer for all of one shape, and kernels for each shape.
    Otherwise the graph works leaf by leaf, on the parameters where they are.

    In buffers, it is data which parameters have a gradient: only the first time that one has none compiles again. Where
    zeros in its place would show in a norm of all updates, such steps are not compiled; nor are those that search along
    a line by calling a closure.
    """

    def __init__(self, owner: InPlace, params: Mapping[Key, Tensor], options: Mapping[str, Any]) -> None:
        self.owner = owner
        self.tx, state, _ = owner.at_step(Values({}, {}))
        self.differing: set[str] = set()  # hypers that parameters have not always shared
        self.hooks: list[Any] = []
        self.with_gaps = EagerStep(owner, params) if owner.packed and shows_gaps(self.tx, state) else None
        self.eager = self.with_gaps
        self.stacks = None if owner.packed else Stacks.of(owner, self.tx, state, params)
        update = _update(self.tx, owner) if self.stacks is None else self.stacks.update
        self.run = compile_step(update, donate=(0, 1), **options)
        if owner.packed:
            self.params = owner.layout.pack({key: param.detach() for key, param in params.items()})
            self.grads = owner.layout.zeros()
            self._put(params, tree.unpack(self.params), tree.unpack(self.grads))
        elif self.stacks is not None:
            self._put(params, self.stacks.param_views, self.stacks.grad_views)

    def _put(self, params: Mapping[Key, Tensor], views: Mapping[Key, Tensor], grad_views: Mapping[Key, Tensor]) -> None:
        """Make parameters, and from now on gradients, views of buffers."""
        self.param_views = {key: _with_own_storage(view) for key, view in views.items()}
        self.grad_views = grad_views
        self.places = _places(self.param_views[key] for key in params)
        self.grad_places = _places(self.grad_views[key] for key in params)
        self._adopt(params)
        me: weakref.ref[CompiledStep] = weakref.ref(self)
        self.hooks = [p.register_post_accumulate_grad_hook(_Collect(me, key)) for key, p in params.items()]

    def __call__(self, params: Mapping[Key, Tensor], grads: Mapping[Key, Tensor], values: Values, extras: Any) -> None:
        """Take a step for the parameters that have a gradient."""
        owner = self.owner
        if isinstance(extras.get("value_fn"), ClosureLoss):
            if takes_extra(self.tx, "value_fn"):  # a closure goes backward by itself, which is nothing for a graph
                self.eager = self.eager or EagerStep(owner, params)
                self.eager(params, grads, values, extras)
                return
            extras = {name: value for name, value in extras.items() if name != "value_fn"}
        if self.with_gaps is not None and len(grads) < len(params):
            self.with_gaps(params, grads, values, extras)
            return
        _, state, values = owner.at_step(values)
        if owner.packed:
            self._adopt(params)
            self._collect(params, grads)
            hypers = self._hypers(values, [*params])
            given: Tree = ()
            if len(grads) < len(params):
                given = owner.layout.numbers({key: key in grads for key in params})
            self.run(self.params, state, self.grads, hypers, given, extras)
        elif (stacks := self.stacks) is not None:
            self._adopt(params)
            self._collect(params, grads)
            given = stacks.given(grads) if len(grads) < len(params) else ()
            hypers = stacks.hypers(values, self.differing)
            self.run(stacks.params, (stacks.states, stacks.shared), stacks.grads, hypers, given, extras)
        else:
            own = {key: params[key].detach() for key in grads}
            hypers = values.for_keys([*grads])
            self.run(own, select(state, owner.keys, grads.keys()), dict(grads), hypers, (), extras)
        owner.count_step()

    def close(self) -> None:
        """Stop collecting gradients."""
        for hook in self.hooks:
            hook.remove()

    def _hypers(self, values: Values, keys: list[Key]) -> dict[str, Any]:
        """Return one number for all, or for a hyper that has ever differed between parameters the scalars of all."""
        hypers = values.for_keys(keys, self.owner.layout)
        self.differing |= {name for name, value in hypers.items() if tree.layout_of(value) is not None}
        return {
            name: self.owner.layout.numbers(value) if name in self.differing and not tree.layout_of(value) else value
            for name, value in hypers.items()
        }

    def _adopt(self, params: Mapping[Key, Tensor]) -> None:
        """Make sure that every parameter is a view of the buffer, and has the values that it has now."""
        if _places(params.values()) == self.places:
            return
        for key, param in params.items():
            view = self.param_views[key]
            if param.data_ptr() != view.data_ptr() or param.stride() != view.stride():
                view.copy_(param.detach())
                param.data = view

    def _collect(self, params: Mapping[Key, Tensor], grads: Mapping[Key, Tensor]) -> None:
        """Bring gradients that lie elsewhere into the buffer, and zeros where there is none."""
        if _places(grads.values()) == self.grad_places:
            return
        for key, view in self.grad_views.items():
            grad = grads.get(key)
            if grad is None:
                view.zero_()
            elif grad.data_ptr() != view.data_ptr() or grad.stride() != view.stride():
                view.copy_(grad)
                params[key].grad = view


def _places(tensors: Iterable[Tensor]) -> tuple[list[int], list[tuple[int, ...]]]:
    """Return where tensors lie, to compare at every step, quickly, with where they should."""
    tensors = [*tensors]
    return [t.data_ptr() for t in tensors], [t.stride() for t in tensors]


def _with_own_storage(view: Tensor) -> Tensor:
    """Return the same memory as a tensor whose storage is that and no more.

    A parameter is then saved without the rest of the buffer, and whatever looks for shared weights by their storage, as
    safetensors and Accelerate do when they save, does not take all parameters for one.
    """
    real = type(view) is Tensor and view.device.type in ("cpu", "cuda")  # neither meta nor fake
    return torch.from_dlpack(view) if real else view


def _update(tx: Transform, owner: InPlace) -> Callable[..., tuple[Tree, Tree]]:
    choose = owner.layout.choose

    def update(params: Tree, state: Tree, grads: Tree, hypers: Any, given: Tree, extras: Any) -> tuple[Tree, Tree]:
        new, new_state = tx.run(grads, state, params, hypers, **extras)
        return (new, new_state) if given == () else (choose(given, new, params), choose(given, new_state, state))

    return update


class _Collect:
    """Moves a gradient into the buffer as soon as it has been accumulated, which frees its memory."""

    def __init__(self, step: weakref.ref[CompiledStep], key: Key) -> None:
        self.step, self.key = step, key

    @torch.no_grad()
    def __call__(self, param: Tensor) -> None:
        step = self.step()
        if step is None or param.grad is None or param.grad.requires_grad or param.grad.layout is not torch.strided:
            return
        view = step.grad_views[self.key]
        if param.grad.data_ptr() != view.data_ptr():
            param.grad = view.copy_(param.grad)
