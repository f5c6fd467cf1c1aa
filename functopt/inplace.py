"""Steps of a pure optimizer on parameters that live elsewhere, such as in a module: their tensors are written to.

The state is kept packed where the optimizer allows it (see :func:`tree.pack <functopt.tree.pack>`), with bookkeeping of
its own for every parameter, and is updated in place too. Parameters are known by a key each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

from torch import Tensor

from functopt import tree
from functopt.base import Transform
from functopt.combine import ScheduledState, split_chain, without_counter
from functopt.hypers import has_schedule
from functopt.param_state import entries, map_entries
from functopt.sharded import Sharding, assign, is_sharded, naming, settled
from functopt.tree import Layout, Tree, is_schedule

__all__ = ["InPlace", "Key", "Values", "same"]

Key = Any


class Values:
    """The hypers in force.

    Args:
        by_name: for each hyper its value in every group of parameters: a number, a 0-d tensor, a schedule, or a dict of
            those by key.
        group_of: the number of every parameter's group.
        spared: the parameters whose weight decay is 0, whatever their group's.
    """

    def __init__(
        self, by_name: Mapping[str, Sequence[Any]], group_of: Mapping[Key, int], spared: AbstractSet[Key] = frozenset()
    ) -> None:
        self.by_name, self.group_of, self.spared = by_name, group_of, spared

    def of(self, name: str, key: Key) -> Any:
        """Return the value of a hyper for one parameter."""
        if _is_decay(name) and key in self.spared:
            return 0.0
        value = self.by_name[name][self.group_of[key]]
        if not isinstance(value, dict):
            return value
        if key not in value:
            raise ValueError(f"StatefulOptimizer: {name} has no value for {key!r}; it has {sorted(value, key=str)}")
        return value[key]

    def for_keys(self, keys: Sequence[Key], layout: Layout | None = None) -> dict[str, Any]:
        """Return hypers for some parameters: one value where all have the same, else a dict or a layout's scalars."""
        groups = sorted({self.group_of[key] for key in keys})
        out: dict[str, Any] = {}
        for name, values in self.by_name.items():
            first = values[groups[0]]
            spared = _is_decay(name) and not self.spared.isdisjoint(keys)
            if not (spared or isinstance(first, dict)) and all(same(values[group], first) for group in groups[1:]):
                out[name] = first
            else:
                different = {key: self.of(name, key) for key in keys}
                out[name] = layout.numbers(different) if layout is not None else different
        return out

    def at(self, step: Tensor, paced: AbstractSet[str] = frozenset()) -> Values:
        """Return the values with schedules replaced by what they say at a step, but for those that are ``paced``."""

        def look_up(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: look_up(below) for key, below in value.items()}
            return value(step) if is_schedule(value) else value

        by_name = {
            name: values if name in paced else [look_up(v) for v in values] for name, values in self.by_name.items()
        }
        return Values(by_name, self.group_of, self.spared)


def _is_decay(name: str) -> bool:
    return name.rpartition(".")[2] == "weight_decay"  # that of a part, perhaps


def same(value: Any, other: Any) -> bool:
    """Tell whether two values of a hyper are the same tensor, schedule or number, without looking into tensors."""
    return value is other or (isinstance(value, (float, int)) and isinstance(other, (float, int)) and value == other)


class InPlace:
    """An optimizer together with the state of some parameters.

    Of sharded parameters (``DTensor`` s) elementwise links work on what is here, and so they do after a global norm.
    Everything else works on the ``DTensor`` s themselves.

    Args:
        tx: the optimizer.
        values: the defaults of the hypers of every parameter.
        params: the parameters, by key.
    """

    def __init__(self, tx: Transform, values: Values, params: Mapping[Key, Tensor]) -> None:
        own = {key: param.detach() for key, param in params.items()}
        self.keys, self.dtype = own.keys(), next(iter(own.values())).dtype
        self.shardings = {key: Sharding.of(param) for key, param in own.items() if is_sharded(param)}
        # a value for every parameter, so that each has bookkeeping of its own
        hypers: dict[str, Any] = {name: {key: values.of(name, key) for key in own} for name in values.by_name}
        whole_tx = tx.with_hypers(**hypers)
        self.packed = _on_shards(tx) if self.shardings else not tx.links_beyond("element", "leaf", "tree")
        # schedules that are read inside the optimizer cannot be packed
        self.packed = self.packed and not any(has_schedule(v) for name in tx._paced for v in values.by_name[name])
        self.packed = self.packed and not any(param.is_complex() for param in own.values())  # whose parts are leaves
        if not self.packed:
            self.layout, self.tx = Layout.of(own), whole_tx
            with naming(tx.links_beyond("element", "tree", "leaf") if self.shardings else ()):
                state = tree.owned(whole_tx.init(own), own)
            settle = lambda key, path, leaf: settled(leaf, self.shardings.get(key))
            self.state: Tree = map_entries(settle, state, self.keys)
            return
        here = self.here(own)
        self.layout = Layout.of(here)
        self.tx = tx.with_hypers(**{name: self.layout.full(0.0) for name in hypers})  # only their structure counts
        self.state = tree.owned(self.tx.init(self.layout.pack(here)), here)
        if self.shardings and tx.links_beyond("element"):  # they may have looked at whole parameters
            first = entries(whole_tx.init(own), self.keys)
            for entry, leaf in self.entries().items():
                assign(leaf, first[entry])

    @property
    def on_shards(self) -> bool:
        """Whether there are sharded parameters, of which the state is kept for what is here."""
        return self.packed and bool(self.shardings)

    def here(self, tensors: Mapping[Key, Tensor]) -> dict[Key, Tensor]:
        """Return what is here of parameters, or of tensors like them."""
        return {key: self.shardings[key].take(t) if key in self.shardings else t for key, t in tensors.items()}

    def whole(self, state: Tree) -> Tree:
        """Return a part of the state by parameter, as views, those of sharded parameters as ``DTensor`` s."""
        state = tree.unpack(state)
        if not self.on_shards:
            return state

        def view(key: Key, path: tuple[Any, ...], leaf: Tensor) -> Tensor:
            return self.shardings[key].whole(leaf) if key in self.shardings else leaf

        return map_entries(view, state, self.keys)

    def entries(self) -> dict[tuple[Key, str], Tensor]:
        """Return every tensor of the state, or a view of it, by parameter (or ``SHARED``) and name."""
        return entries(self.whole(self.state), self.keys)

    def at_step(self, values: Values) -> tuple[Transform, Tree, Values]:
        """Return the optimizer without its step counter, its state, and hypers in which no schedule is left."""
        tx, state, step = without_counter(self.tx, self.state, self.dtype)
        return tx, state, values if step is None else values.at(step, tx._paced)

    def count_step(self) -> None:
        """Move the step counter on, if there is one."""
        if isinstance(self.state, ScheduledState):
            self.state.count.add_(1)


def _on_shards(tx: Transform) -> bool:
    """Tell whether an optimizer is elementwise, if not from its first link then after global norms."""
    inner = tx._call[1][0] if tx._counts_steps and tx._call else tx
    beyond, far = inner.links_beyond("element"), inner.links_beyond("element", "tree")
    return not beyond or (not far and split_chain(inner, "element") is not None)
