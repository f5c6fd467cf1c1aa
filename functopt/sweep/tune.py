"""How a sweep is run, chosen by trying it out: members at a time, threads, and the form of convolutions."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from functopt.tree import Tree

__all__ = ["COLUMNS", "Plan", "alternatives", "fastest", "has_convolution", "seconds_each", "using_threads"]

COLUMNS = 2**18  # bytes that the columns of a convolution may take, see nn.batched
ENOUGH = 0.95  # of the time of the plan so far, below which another one takes its place
SECONDS = 0.15  # that a plan is watched for, at least
CALLS = 4  # that are watched, at least; two of long ones
LONG = 2.0  # seconds of calls after which two are enough
LEAST = 8  # members at a time down to which that is tried, however many there are
FEW = 64  # members from which on fewer at a time may be faster, as what they compute stays in the cache


class Plan(NamedTuple):
    """What may be chosen without changing what is computed, but for rounding."""

    chunk: int  # members at a time
    threads: int
    columns: int  # bytes; 0 for the convolutions that vmap makes


def alternatives(plan: Plan, *, columns: bool, chunk: bool, threads: bool) -> dict[str, Sequence[int]]:
    """Return what else to try of each part of a plan, for the parts that may be chosen."""
    out: dict[str, Sequence[int]] = {}
    if columns:
        out["columns"] = [limit for limit in (0, COLUMNS, 8 * COLUMNS) if limit != plan.columns]
    if chunk and plan.chunk >= FEW:
        # a few members of a convolutional network fill the cache: of 64 and of 256, 16 at a time are the fastest
        quarters = [plan.chunk // 4**k for k in range(1, plan.chunk.bit_length())]
        out["chunk"] = [size for k, size in enumerate(quarters) if k < 2 or size >= LEAST]
    if threads and plan.threads > 1:
        out["threads"] = sorted({plan.threads // 2, 1}, reverse=True)
    return out


def fastest(plan: Plan, others: Mapping[str, Sequence[int]], seconds: Callable[[Plan], float]) -> Plan:
    """Return the plan with the least time, looked for one part after the other.

    Args:
        plan: where to start.
        others: for each part what to try; threads are left at the first number that is no faster than the one before.
        seconds: the time of a plan. What fails for want of memory, or to compile, takes for ever.
    """
    best, least = plan, seconds(plan)
    for part, values in others.items():
        for value in values:
            other = best._replace(**{part: value})
            took = seconds(other)
            if took < ENOUGH * least:
                best, least = other, took
            elif part == "threads":
                break  # still fewer will not help either
    return best


def seconds_each(call: Callable[[], Any], members: int) -> float:
    """Return the seconds of a call for each member: the median of some, after two that compile and settle."""
    for _ in range(2):
        call()
    times: list[float] = []
    start, passed = time.perf_counter(), 0.0
    while passed < SECONDS or len(times) < (CALLS if passed < LONG else 2):
        began = time.perf_counter()
        call()
        ended = time.perf_counter()
        times.append(ended - began)
        passed = ended - start
    return sorted(times)[len(times) // 2] / members


def has_convolution(loss: Callable[[Tree], Tensor], params: Tree) -> bool:
    """Tell whether a loss has a convolution in it."""
    with _Looking() as looking, torch.no_grad():
        loss(params)
    return looking.found


class _Looking(TorchDispatchMode):
    found = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found = self.found or "convolution" in func.name()
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def using_threads(count: int) -> Iterator[None]:
    """Compute with so many threads meanwhile."""
    before = torch.get_num_threads()
    if count != before:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if count != before:
            torch.set_num_threads(before)
