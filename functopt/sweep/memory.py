"""How much memory a sweep needs, said before it starts."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optree
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from functopt import tree
from functopt.tree import Tree

__all__ = ["check_fits", "human", "member_bytes", "size_of"]


def size_of(*trees: Tree) -> int:
    """Return the bytes of all leaves."""
    return sum(leaf.nbytes for leaf in tree.leaves(trees))


def member_bytes(loss: Callable[[Tree], Tensor], params: Tree, state: Tree) -> int:
    """Return what one member takes while it trains.

    Its parameters and state twice (a step needs those from before it, should it fail), and the most that is alive at a
    time while its gradients are computed: measured, by doing so once. Compiled it may be less.
    """
    with _Counting() as counting:
        torch.func.grad(loss)(params)
    return 2 * size_of(params, state) + counting.most


class _Counting(TorchDispatchMode):
    """Counts the bytes of the tensors that are made: how many are alive, and how many were at most."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.most = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = tree.leaves((args, kwargs))
        before = {leaf.untyped_storage()._cdata for leaf in given if isinstance(leaf, Tensor)}
        out = func(*args, **(kwargs or {}))
        for leaf in optree.tree_leaves(out):
            storage = leaf.untyped_storage() if isinstance(leaf, Tensor) and not leaf.is_meta else None
            if storage is not None and storage._cdata not in self._seen | before:
                self._seen.add(storage._cdata)
                self.alive += storage.nbytes()
                self.most = max(self.most, self.alive)
                weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        return out

    def _gone(self, place: int, size: int) -> None:
        self._seen.discard(place)
        self.alive -= size


def check_fits(needed: int, each: int, members: int, chunk: int, device: torch.device) -> None:
    """Check that the members fit in the memory that is free.

    Args:
        needed: bytes in all.
        each: bytes that one member more in a chunk takes.
        members: how many there are.
        chunk: how many train at a time.
        device: where.

    Raises:
        MemoryError: they do not fit; the message says which chunk would.
    """
    free = _free(device)
    if free is None or needed <= free:
        return
    fits = chunk - -(-(needed - free) // each)
    way_out = f"chunk={fits} would fit" if fits > 0 else "not even one at a time fits beside the results"
    raise MemoryError(
        f"sweep: {members} members, {chunk} at a time, need {human(needed)}, but {human(free)} are free on {device}; "
        f"{way_out}."
    )


def _free(device: torch.device) -> int | None:
    """Return how many bytes are free on a device, or None where there is no way to tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return None
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def human(size: float) -> str:
    """Return a number of bytes as text: ``"41 MB"``."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
