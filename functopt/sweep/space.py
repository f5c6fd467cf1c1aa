"""Search spaces: which value of each hyper every member of a sweep gets."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optree
import torch
from torch import Tensor

from functopt.hypers import check_number
from functopt.tree import is_schedule, path_name

__all__ = ["choice", "draw", "grid", "log_axes", "log_uniform", "uniform"]


@dataclass(frozen=True)
class Drawn:
    """Values drawn for each member."""

    low: float
    high: float
    log: bool = False

    def __repr__(self) -> str:
        return f"{'log_uniform' if self.log else 'uniform'}({self.low:g}, {self.high:g})"

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Return ``count`` values in ``[low, high]``."""
        at = torch.rand(count, generator=generator, dtype=torch.float64)
        if self.log:
            return (math.log(self.low) + at * (math.log(self.high) - math.log(self.low))).exp()
        return self.low + at * (self.high - self.low)


@dataclass(frozen=True)
class Chosen:
    """Values chosen from a list for each member."""

    values: tuple[float, ...]

    def __repr__(self) -> str:
        return f"choice({list(self.values)})"

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Return ``count`` of the values, with replacement."""
        return _tensor(self.values)[torch.randint(len(self.values), (count,), generator=generator)]


@dataclass(frozen=True)
class Grid:
    """Values that are all combined with those of the other grids."""

    values: tuple[float, ...]

    def __repr__(self) -> str:
        return f"grid({list(self.values)})"


@dataclass(frozen=True)
class Listed:
    """One value for each member."""

    values: Tensor


def _numbers(who: str, values: Any) -> tuple[float, ...]:
    if isinstance(values, Tensor):
        values = values.tolist()
    if not isinstance(values, (Sequence, range)) or isinstance(values, str) or not values:
        raise TypeError(f"{who}: expected a list of numbers, got {values!r}")
    for value in values:
        if not isinstance(value, (float, int)) or isinstance(value, bool):
            raise TypeError(f"{who}: {value!r} is not a number")
        if math.isnan(value):
            raise ValueError(f"{who}: NaN is not a value to train with")
    return tuple(values)


def _bounds(who: str, low: float, high: float, above: float) -> tuple[float, float]:
    if not (above < low < high < math.inf):
        limit = "0 < low < high" if above == 0 else "low < high"
        raise ValueError(f"{who}: expected {limit}, both finite, got {low!r} and {high!r}")
    return float(low), float(high)


def log_uniform(low: float, high: float) -> Drawn:
    """Draw a value for each member so that every decade of ``[low, high]`` is equally likely.

    Raises:
        ValueError: not ``0 < low < high``, or a bound is not finite.
    """
    return Drawn(*_bounds("log_uniform", low, high, 0.0), log=True)


def uniform(low: float, high: float) -> Drawn:
    """Draw a value for each member, evenly from ``[low, high]``.

    Raises:
        ValueError: not ``low < high``, or a bound is not finite.
    """
    return Drawn(*_bounds("uniform", low, high, -math.inf))


def choice(values: Sequence[float]) -> Chosen:
    """Choose one of the values for each member, with replacement.

    Raises:
        TypeError: an entry is not a number.
        ValueError: an entry is NaN.
    """
    return Chosen(_numbers("choice", values))


def grid(values: Sequence[float]) -> Grid:
    """Try every value, combined with every value of all other grids of the space.

    Raises:
        TypeError: an entry is not a number.
        ValueError: an entry is NaN.
    """
    return Grid(_numbers("grid", values))


def _tensor(values: Sequence[float]) -> Tensor:
    whole = all(isinstance(value, int) for value in values)
    return torch.tensor(values, dtype=torch.int64 if whole else torch.float64)


def _is_spec(leaf: Any) -> bool:
    return isinstance(leaf, (Drawn, Chosen, Grid, Listed))


def _parse(name: str, value: Any) -> Any:
    """Turn one entry of a space into a tree of kinds and constants; what is explicit becomes ``Listed``."""
    if is_schedule(value):
        return optree.tree_map(lambda leaf: _parse_leaf(name, leaf), value)
    return _parse_leaf(name, value)


def _parse_leaf(name: str, value: Any) -> Any:
    if _is_spec(value):
        return value
    if isinstance(value, (float, int)) and not isinstance(value, bool):
        _numbers(f"sweep: {name}", [value])
        return value
    if isinstance(value, Tensor) and value.ndim == 0:
        return value.item()
    if isinstance(value, Tensor) and value.ndim != 1:
        raise ValueError(f"sweep: {name} has shape {list(value.shape)}; explicit values are a list or a 1-d tensor")
    return Listed(_tensor(_numbers(f"sweep: {name}", value)))


def _specs(parsed: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the dotted name and kind of everything that varies in a parsed space, in the order of the space."""
    for name, tree in parsed.items():
        accessors, leaves, _ = optree.tree_flatten_with_accessor(tree, is_leaf=_is_spec)
        for accessor, leaf in zip(accessors, leaves, strict=True):
            if _is_spec(leaf):
                yield path_name([name, *(getattr(entry, "field", entry.entry) for entry in accessor)]), leaf


def _flat(space: Mapping[str, Any]) -> dict[str, Any]:
    """Give what belongs to a part its full name: ``{"body": {"lr": ...}}`` is ``{"body.lr": ...}``."""
    out: dict[str, Any] = {}
    for name, value in space.items():
        nested = isinstance(value, Mapping) and value
        out |= _flat({f"{name}.{below}": v for below, v in value.items()}) if nested else {name: value}
    return out


def draw(space: Mapping[str, Any], members: int | None, seed: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Give every member its value of every hyper.

    Returns:
        ``(hypers, columns)``: the hypers as trees whose leaves have a leading axis of members, and the same values as a
        table, one column for everything that varies.

    Raises:
        ValueError: the space is empty, or lengths clash; the message names the hypers.
    """
    if not space:
        raise ValueError("sweep: the space is empty; give it at least one hyper")
    space = _flat(space)
    parsed = {name: _parse(name, value) for name, value in space.items()}
    specs = dict(_specs(parsed))
    sizes: dict[str, int] = {f"members={members}": members} if members is not None else {}
    grids = {name: spec for name, spec in specs.items() if isinstance(spec, Grid)}
    if grids:
        sizes[" × ".join(f"{name} {spec!r}" for name, spec in grids.items())] = math.prod(
            len(spec.values) for spec in grids.values()
        )
    for name, spec in specs.items():
        if isinstance(spec, Listed):
            sizes[f"the list for {name}"] = len(spec.values)
    if not sizes:
        raise ValueError("sweep: say how many members to draw, as in members=64")
    if len({*sizes.values()}) > 1:
        said = ", ".join(f"{what} gives {size}" for what, size in sizes.items())
        raise ValueError(f"sweep: the number of members is not the same everywhere: {said}")
    count = next(iter(sizes.values()))
    if count < 1:
        raise ValueError(f"sweep: a sweep has at least one member, got {count}")
    generator = torch.Generator().manual_seed(seed)
    columns = dict(_grid_columns(grids))
    for name, spec in specs.items():
        if isinstance(spec, (Drawn, Chosen)):
            columns[name] = spec.draw(count, generator)
        elif isinstance(spec, Listed):
            columns[name] = spec.values
    columns = {name: columns[name] for name in specs}
    for name, column in columns.items():
        for value in column.tolist():
            check_number("sweep", name.rsplit(".", 1)[-1], value)
    filled = iter(columns.values())
    expand = lambda leaf: next(filled) if _is_spec(leaf) else _tensor([leaf] * count)
    return {name: optree.tree_map(expand, tree, is_leaf=_is_spec) for name, tree in parsed.items()}, columns


def _grid_columns(grids: Mapping[str, Grid]) -> Iterator[tuple[str, Tensor]]:
    if grids:
        axes = torch.meshgrid(*(_tensor(spec.values) for spec in grids.values()), indexing="ij")
        for name, axis in zip(grids, axes, strict=True):
            yield name, axis.reshape(-1)


def log_axes(space: Mapping[str, Any]) -> frozenset[str]:
    """Return the names of what is spaced evenly on a logarithmic axis."""
    parsed = {name: _parse(name, value) for name, value in _flat(space).items()}
    return frozenset(name for name, spec in _specs(parsed) if _is_log(spec))


def _is_log(spec: Any) -> bool:
    if isinstance(spec, Drawn):
        return spec.log
    values = sorted({*(spec.values.tolist() if isinstance(spec.values, Tensor) else spec.values)})
    if len(values) < 3 or values[0] <= 0:
        return False
    ratios = [b / a for a, b in itertools.pairwise(values)]
    # more than a decade, in steps nearer to a constant factor than to a constant difference
    return values[-1] / values[0] >= 10 and max(ratios) / min(ratios) < 4
