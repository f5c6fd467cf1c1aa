"""Links that look at the updates on their way and write down what they see."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from functopt import tree
from functopt.base import Transform, link, state_class
from functopt.combine import combinator, merge_hypers
from functopt.ema import Ema
from functopt.hypers import Hypers
from functopt.numerics import accumulator_dtype
from functopt.tree import Tree

__all__ = ["MeasureWithEmaState", "MonitorState", "SnapshotState", "measure_with_ema", "monitor", "snapshot"]

Measure = Callable[[Tree], Tree]


def _measured(who: str, name: str, values: Tree) -> Tree:
    """Return a copy of a measurement, which may be the updates themselves, after a look at what it is."""
    for leaf in tree.leaves(values):
        if not isinstance(leaf, Tensor):
            raise TypeError(f"{who}: the measure {name!r} gives a {type(leaf).__name__}; expected tensors")
    return tree.map(torch.clone, values)


@state_class
class SnapshotState(NamedTuple):
    """What was measured at the last step, by name; zeros before the first."""

    measurement: dict[str, Tree]


@combinator
def snapshot(measure_name: str, measure: Measure) -> Transform:
    """Measure the updates where the link stands in the chain; they pass through bit for bit.

    The state keeps what the last step gave: ``tree.get(state, measure_name)``. :func:`monitor` takes several measures
    and averages.

    Args:
        measure_name: what it is called in the state.
        measure: ``(updates) -> tensors``, a pure function such as ``tree.norm``, with the same shapes and dtypes at
            every step.

    Raises:
        TypeError: the measure gives something else than tensors.

    >>> tx = chain(snapshot("norm", tree.norm), sgd(lr=0.1))
    >>> tree.get(tx.update(grads, tx.init(params), params)[1], "norm")
    tensor(1.1180)
    """

    def look(updates: Tree) -> SnapshotState:
        return SnapshotState({measure_name: _measured("snapshot", measure_name, measure(updates))})

    def init(params: Tree) -> SnapshotState:
        return tree.map(torch.zeros_like, look(tree.zeros_like(params)))

    def transform(updates: Tree, state: Tree, params: Tree, hypers: Hypers, **extras: Any) -> tuple[Tree, Tree]:
        return updates, look(updates)

    return Transform(init, transform, scopes=[("snapshot", "any")])


@state_class
class MonitorState(NamedTuple):
    """What was measured at the last step, by name, zeros before the first; and the states of the measures."""

    measurements: dict[str, Tree]
    measure_states: tuple[Tree, ...]


@combinator
def monitor(measures: Mapping[str, Measure | Transform]) -> Transform:
    """Take several measures of the updates where the link stands; they pass through bit for bit.

    The state keeps what the last step gave: ``tree.get(state, name)``.

    Args:
        measures: by name, functions ``(updates) -> tensors`` as for :func:`snapshot`; averages of such, made with
            :func:`measure_with_ema`; or other transforms, whose updates are written down. The hypers of these are those
            of the monitor.

    Raises:
        TypeError: a measure gives something else than tensors.
        ValueError: two measures have different defaults for one hyper.

    >>> tx = chain(monitor({"norm": tree.norm, "mean": ema(0.9)}), sgd(lr=0.1))
    >>> tree.get(tx.update(grads, tx.init(params), params)[1], "norm")
    tensor(1.1180)
    """
    stateful = {name: measure for name, measure in measures.items() if isinstance(measure, Transform)}

    def look(updates: Tree, states: tuple[Tree, ...], params: Tree, hypers: Hypers, **extras: Any) -> MonitorState:
        seen, new = {}, []
        old = iter(states)
        for name, measure in measures.items():
            if isinstance(measure, Transform):
                values, state = measure._transform(updates, next(old), params, hypers, **extras)
                new.append(state)
            else:
                values = measure(updates)
            seen[name] = _measured("monitor", name, values)
        return MonitorState(seen, tuple(new))

    def init(params: Tree) -> MonitorState:
        states = tuple(measure._init(params) for measure in stateful.values())
        seen = look(tree.zeros_like(params), states, params, merged).measurements
        return MonitorState(tree.map(torch.zeros_like, seen), states)

    def transform(updates: Tree, state: Tree, params: Tree, hypers: Hypers, **extras: Any) -> tuple[Tree, Tree]:
        return updates, look(updates, state.measure_states, params, hypers, **extras)

    merged = merge_hypers(stateful.values(), "monitor")
    return Transform(init, transform, hypers=merged, scopes=[("monitor", "any")])


@state_class
class MeasureWithEmaState(NamedTuple):
    """The average of the measurement."""

    ema: Ema


@link
def measure_with_ema(decay=0.9, *, measure: Measure, debias: bool = True) -> Any:
    """Average a measurement over the steps: a measure for :func:`monitor`, which is where it belongs.

    ``a ← decay·a + (1 - decay)·measure(u)``, divided by the sum of the weights. What is measured may be a bool, whose
    average is a frequency.

    Args:
        decay: what is kept of the past. There is one average, so that of a value for each group the first counts.
        measure: as for :func:`snapshot`.
        debias: if false, it is not divided.

    >>> often = measure_with_ema(0.9, measure=lambda u: tree.norm(u) > 1.0)
    >>> tx = chain(monitor({"often": often}), clip_by_global_norm(1.0), sgd(lr=0.1))
    >>> tree.get(tx.update(grads, tx.init(params), params)[1], "often")
    tensor(1.)
    """

    def measured(updates: Tree, params: Tree) -> Tree:
        dtype = accumulator_dtype(tree.leaves(params)[0].dtype)
        return tree.map(lambda x: x if x.is_floating_point() else x.to(dtype), measure(updates))

    def init(params) -> MeasureWithEmaState:
        return MeasureWithEmaState(Ema.zeros(measured(tree.zeros_like(params), params)))

    def transform(updates, state, params, decay):
        new = state.ema.update(measured(updates, params), tree.leaves(decay)[0])
        return (new.mean if debias else new.total), MeasureWithEmaState(new)

    return init, transform
