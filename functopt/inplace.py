"""Steps of a pure optimizer on parameters that live elsewhere, such as in a module: their tensors are written to.

The state is kept packed where the optimizer allows it (see :func:`tree.pack <functopt.tree.pack>`), with bookkeeping of
its own for every parameter, and is updated in place too. Parameters are known by a key each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from functopt import tree
from functopt.base import Transform
from functopt.combine import ScheduledState, without_counter
from functopt.param_state import entries
from functopt.tree import Layout, Tree, is_schedule

__all__ = ["InPlace", "Key", "Values", "for_keys"]

Key = Any
Values = Mapping[str, Mapping[Key, Any]]
"""The hypers in force: by name, then by the parameter's key."""


class InPlace:
    """An optimizer together with the state of some parameters.

    Args:
        tx: the optimizer.
        values: the defaults of the hypers of every parameter.
        params: the parameters, by key.
    """

    def __init__(self, tx: Transform, values: Values, params: Mapping[Key, Tensor]) -> None:
        own = {key: param.detach() for key, param in params.items()}
        self.packed = not tx.links_beyond("element", "leaf", "tree")
        self.layout = Layout.of(own)
        self.keys = own.keys()
        # a value for every parameter, so that each has bookkeeping of its own
        plain = {name: {key: 0.0 if is_schedule(v) else v for key, v in by.items()} for name, by in values.items()}
        hypers = {name: self.layout.numbers(by) for name, by in plain.items()} if self.packed else plain
        self.tx = tx.with_hypers(**hypers)
        self.state: Tree = tree.owned(self.tx.init(self.layout.pack(own) if self.packed else own), own)

    def entries(self) -> dict[tuple[Key, str], Tensor]:
        """Return every tensor of the state, or a view of it, by parameter (or ``SHARED``) and name."""
        return entries(tree.unpack(self.state), self.keys)

    def at_step(self, values: Values) -> tuple[Transform, Tree, Values]:
        """Return the optimizer without its step counter, its state, and hypers in which no schedule is left."""
        tx, state, step = without_counter(self.tx, self.state)
        if step is not None:
            found: dict[int, Any] = {}
            for by_key in values.values():
                for value in by_key.values():
                    if is_schedule(value) and id(value) not in found:
                        found[id(value)] = value(step)
            values = {name: {key: found.get(id(v), v) for key, v in by.items()} for name, by in values.items()}
        return tx, state, values

    def count_step(self) -> None:
        """Move the step counter on, if there is one."""
        if isinstance(self.state, ScheduledState):
            self.state.count.add_(1)


def for_keys(values: Values, keys: Sequence[Key], layout: Layout | None = None) -> dict[str, Any]:
    """Return hypers for some parameters: one value where all have the same, else a dict, or the scalars of a layout."""
    out: dict[str, Any] = {}
    for name, by_key in values.items():
        first = by_key[keys[0]]
        if all(by_key[key] is first for key in keys) or _all_equal(by_key, keys):
            out[name] = first
        else:
            different = {key: by_key[key] for key in keys}
            out[name] = layout.numbers(different) if layout is not None else different
    return out


def _all_equal(by_key: Mapping[Key, Any], keys: Sequence[Key]) -> bool:
    first = by_key[keys[0]]
    return all(isinstance(by_key[key], (float, int)) and by_key[key] == first for key in keys)
