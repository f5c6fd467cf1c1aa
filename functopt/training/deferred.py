"""Numbers on a device that are not waited for: kept as they are, and brought over many at a time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import optree
import torch
from torch import Tensor

from functopt.tree import is_schedule

__all__ = ["Scheduled", "brought_over", "kept", "value_at"]


class Scheduled(NamedTuple):
    """What a schedule says at a count, which need not be known yet."""

    schedule: Any
    count: Any  # a number or a 0-d tensor


def value_at(name: str, value: Any, count: Any) -> Any:
    """Return what is kept of a hyper: a number, a copy of a 0-d tensor, or a schedule and where it stands.

    Raises:
        ValueError: a tensor has dimensions.
        TypeError: it is none of these.
    """
    if not is_schedule(value):
        return kept(name, value)
    if not any(isinstance(leaf, Tensor) for leaf in optree.tree_leaves(value)):
        return Scheduled(value, count)
    # its tensors may be written to later
    at = count.double() if isinstance(count, Tensor) else torch.tensor(count, dtype=torch.float64)
    return kept(name, value(at))


def kept(name: str, value: Any) -> float | Tensor:
    """Return a number, or a copy of a 0-d tensor where it is, without its graph.

    Raises:
        ValueError: a tensor has dimensions.
        TypeError: it is neither.
    """
    if isinstance(value, Tensor):
        if value.ndim:
            raise ValueError(f"record: {name} has shape {list(value.shape)}, expected a 0-d tensor; take its mean()")
        return value.detach().clone()
    if isinstance(value, (float, int, np.generic)):
        return float(value)
    raise TypeError(f"record: {name} is a {type(value).__name__}, expected a number or a 0-d tensor")


def brought_over(values: Sequence[Any]) -> np.ndarray:
    """Return what was kept as float64: one transfer for each device and dtype, one call for each schedule."""
    numbers = _numbers([value.count if isinstance(value, Scheduled) else value for value in values])
    alike = defaultdict(list)
    for i, value in enumerate(values):
        if isinstance(value, Scheduled):
            alike[id(value.schedule)].append(i)
    for places in alike.values():
        numbers[places] = _values(values[places[0]].schedule, numbers[places])
    return numbers


def _numbers(values: Sequence[Any]) -> np.ndarray:
    out, alike = np.empty(len(values)), defaultdict(list)
    for i, value in enumerate(values):
        if isinstance(value, Tensor):
            alike[value.device, value.dtype].append(i)
        else:
            out[i] = value
    for places in alike.values():
        out[places] = torch.stack([values[i] for i in places]).cpu().double().numpy()
    return out


def _values(schedule: Any, counts: np.ndarray) -> np.ndarray:
    at = torch.from_numpy(counts)
    value = lambda count: schedule(count) + 0.0 * count  # a tensor, whatever the schedule returns
    try:
        return torch.func.vmap(value)(at).numpy()
    except RuntimeError:  # it asks Python about the step
        return np.array([float(value(count)) for count in at])
