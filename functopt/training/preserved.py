"""Train for a try, and have everything as it was before."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from functopt.stateful import StatefulOptimizer
from functopt.training.learner import Learner, PureLearner
from functopt.training.random import random_state, set_random_state

__all__ = ["preserved"]


@contextlib.contextmanager
def preserved(*things: Any) -> Iterator[None]:
    """Put everything back at the end of the block, bit for bit, also if an exception ends it.

    The random state of Python, numpy and torch always, and of

    - a module: parameters and all buffers, gradients, what requires gradients, and the mode (training or not) of every
      part. They are the same tensors as before, also where the block has put others in their place;
    - an optimizer: its parameters, likewise, state, groups with their hypers (schedules too), and what is frozen;
    - a ``torch.Generator``, such as that of a data loader: its state;
    - a :class:`Learner` or :class:`PureLearner`: all that belongs to it;
    - anything else with ``state_dict`` and ``load_state_dict``: what these keep.

    All of it is held twice meanwhile. What a module keeps in plain attributes is not put back.

    Args:
        *things: what to put back.

    Raises:
        TypeError: there is no way to put a thing back.
        ValueError: a module has parameters that get their shape from the first batch, and had none yet.

    >>> with preserved(model, optimizer):
    ...     train_a_little()
    """
    memory: _Memory = {}
    with contextlib.ExitStack() as stack:
        stack.callback(set_random_state, random_state())
        for thing in things:
            for part in _parts(thing):
                stack.callback(_keep(part, memory))
        yield


def _parts(thing: Any) -> Iterator[Any]:
    if isinstance(thing, Learner):
        yield from (thing.model, thing.optimizer)
    elif isinstance(thing, PureLearner):
        yield from (thing, thing.model)
    else:
        yield thing
    if isinstance(thing, (Learner, PureLearner)) and isinstance(thing.loss_of, nn.Module):
        yield thing.loss_of


_Memory = dict[int, Callable[[], Any]]  # how to put back what was seen, by id: nothing is copied twice


def _keep(part: Any, memory: _Memory) -> Callable[[], Any]:
    """Return a function that puts a part back."""
    if isinstance(part, nn.Module):
        return _keep_module(part, memory)
    if isinstance(part, torch.optim.Optimizer):
        return _keep_optimizer(part, memory)
    if isinstance(part, torch.Generator):
        state = part.get_state()
        return lambda: part.set_state(state)
    if not (hasattr(part, "state_dict") and hasattr(part, "load_state_dict")):
        raise TypeError(
            f"preserved: cannot put back a {type(part).__name__}; expected a learner, a module, an optimizer, a "
            "torch.Generator, or something with state_dict and load_state_dict"
        )
    saved = copy.deepcopy(part.state_dict())
    return lambda: part.load_state_dict(saved)


def _keep_module(module: nn.Module, memory: _Memory) -> Callable[[], Any]:
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if nn.parameter.is_lazy(tensor):
            raise ValueError(f"preserved: {name!r} has no shape yet; give the module one batch first")
    parts = [(part, part.training) for part in module.modules()]
    tensors = [_remember(own, memory) for part, _ in parts for own in (part._parameters, part._buffers)]

    def put_back() -> None:
        for restore in tensors:
            restore()
        for part, mode in parts:
            part.training = mode

    return put_back


def _keep_optimizer(optimizer: torch.optim.Optimizer, memory: _Memory) -> Callable[[], Any]:
    groups = _remember(optimizer.param_groups, memory)
    frozen_idx = getattr(optimizer, "frozen_idx", None)
    # the state that a StatefulOptimizer shows is only a view. The others read theirs back in another precision
    saved = optimizer.state_dict() if isinstance(optimizer, StatefulOptimizer) else None
    state = _remember(optimizer.state, memory) if saved is None else None

    def put_back() -> None:
        if saved is not None:
            optimizer.param_groups = groups()  # before their number is compared, too
            optimizer.load_state_dict(saved)
        if state is not None:
            state()
        optimizer.param_groups = groups()
        if frozen_idx is not None:
            optimizer.frozen_idx = frozen_idx  # pyright: ignore[reportAttributeAccessIssue]

    return put_back


def _remember(value: Any, memory: _Memory) -> Callable[[], Any]:
    """Return a function that returns the same tensors, dicts and lists, with the contents they have now."""
    if id(value) not in memory:
        memory[id(value)] = _remember_anew(value, memory)
    return memory[id(value)]


def _remember_anew(value: Any, memory: _Memory) -> Callable[[], Any]:
    if isinstance(value, Tensor):
        return _remember_tensor(value, memory)
    if isinstance(value, dict):
        entries = {key: _remember(entry, memory) for key, entry in value.items()}

        def refill() -> Any:
            now = {key: restore() for key, restore in entries.items()}
            value.clear()
            dict.update(value, now)  # a group has a method of its own
            return value

        return refill
    if isinstance(value, list):
        items = [_remember(item, memory) for item in value]

        def replace() -> Any:
            value[:] = [restore() for restore in items]
            return value

        return replace
    if isinstance(value, tuple):  # schedules, betas: cannot be written into, but what they hold can
        held = [_remember(item, memory) for item in value]

        def restore_all() -> Any:
            for restore in held:
                restore()
            return value

        return restore_all
    return lambda: value


def _remember_tensor(tensor: Tensor, memory: _Memory) -> Callable[[], Tensor]:
    value, needs_grad = tensor.detach().clone(), tensor.requires_grad
    grad = _remember(tensor.grad, memory) if tensor.is_leaf else None
    # torch writes into no tensor whose entries share memory, such as an expanded one
    written = not any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True))

    def put_back() -> Tensor:
        with torch.no_grad():
            if written:
                tensor.copy_(value)
        if tensor.requires_grad != needs_grad:
            tensor.requires_grad_(needs_grad)
        if grad is not None:
            tensor.grad = grad()
        return tensor

    return put_back
