"""Tensors spread over processes: ``DTensor`` s, which ``fully_shard`` and tensor parallelism make of parameters.

Operations on them mean what they mean on whole tensors: a sum goes over all processes. What is elementwise may be done
to every process's own shard instead, which is much faster.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Sharding", "assign", "check_whole", "is_sharded", "naming", "replicated", "settled", "storage"]

Placements = tuple[Any, ...]


def is_sharded(x: Any) -> bool:
    """Tell whether a tensor is a ``DTensor``."""
    return hasattr(x, "device_mesh")  # their class takes more than a second to import


def check_whole(params: Mapping[Any, Tensor], who: str) -> None:
    """Check that no parameter is sharded.

    Raises:
        TypeError: one is; ``who`` is what cannot take it.
    """
    for key, param in params.items():
        if is_sharded(param):
            raise TypeError(
                f"{who} does not take sharded parameters, and {key!r} is one (a DTensor). Leave compile off: the step "
                "then works on what every process has of the parameters."
            )


@contextlib.contextmanager
def naming(links: Sequence[str]) -> Iterator[None]:
    """Say of an operation that cannot be done with sharded parameters which links may be the ones that do it."""
    try:
        yield
    except (NotImplementedError, RuntimeError) as error:
        if not links or not (isinstance(error, NotImplementedError) or "DTensor" in str(error)):
            raise
        raise NotImplementedError(
            f"StatefulOptimizer: {' or '.join(links)} does what cannot be done with sharded parameters (DTensors): "
            f"{error}\nKeep those whole that it is for, by fully_shard(..., ignored_params=...), or write it with "
            "operations that DTensor has, on tensors made from the parameters (p.new_zeros)."
        ) from error


class Sharding(NamedTuple):
    """How a parameter is spread, and the shape of what is here."""

    mesh: Any
    placements: Placements
    shape: torch.Size
    stride: tuple[int, ...]
    here: torch.Size

    @staticmethod
    def of(param: Any) -> Sharding:
        """Return how a ``DTensor`` is spread."""
        here = param.to_local().shape
        return Sharding(param.device_mesh, tuple(param.placements), param.shape, param.stride(), here)

    def take(self, whole: Any) -> Tensor:
        """Return what is here of a ``DTensor`` of the parameter's shape, such as its gradient."""
        if tuple(whole.placements) != self.placements:
            whole = whole.redistribute(placements=self.placements)
        return whole.to_local()

    def whole(self, leaf: Tensor) -> Tensor:
        """Return the ``DTensor`` of which a tensor is what is here, if it has the shape for it; both share memory."""
        if not leaf.ndim or leaf.shape != self.here:
            return leaf
        cls: Any = sys.modules["torch.distributed.tensor"].DTensor
        return cls.from_local(
            leaf, self.mesh, self.placements, run_check=False, shape=self.shape, stride=self.stride
        )  # fmt: skip

    def beside(self, leaf: Any) -> Placements:
        """Return how to spread a tensor that is kept for the parameter: like it, along the axes that both have."""
        if leaf.ndim != len(self.shape):
            return _reduced(leaf)
        same = [a == b for a, b in zip(leaf.shape, self.shape, strict=True)]
        return tuple(p if not p.is_shard() or same[p.dim] else _replicate() for p in self.placements)


def settled(leaf: Any, beside: Sharding | None) -> Tensor:
    """Return a tensor of a new state with memory of its own: numbers on every process, the rest like its parameter."""
    if not is_sharded(leaf):
        return leaf
    if not leaf.ndim:
        return leaf.full_tensor().clone()
    placements = _reduced(leaf) if beside is None else beside.beside(leaf)
    return leaf.redistribute(placements=placements).clone()


def replicated(leaf: Any) -> Tensor:
    """Return a tensor with all of it on every process, as a ``DTensor`` if it is one."""
    return leaf.redistribute(placements=[_replicate()] * leaf.device_mesh.ndim) if is_sharded(leaf) else leaf


def _replicate() -> Any:
    return sys.modules["torch.distributed.tensor"].Replicate()


def _reduced(leaf: Any) -> Placements:
    return tuple(_replicate() if p.is_partial() else p for p in leaf.placements)


def assign(old: Any, new: Any) -> None:
    """Write a tensor's value into another one, whether they are spread, and how, or not.

    A whole tensor that is written into a spread one must be the same on every process.
    """
    spread = is_sharded(old)
    if is_sharded(new) and not (spread and new.device_mesh == old.device_mesh):
        new = new.full_tensor()
    if spread:
        if is_sharded(new):
            new = new.redistribute(placements=old.placements)
        else:
            distribute: Any = sys.modules["torch.distributed.tensor"].distribute_tensor
            new = distribute(new.to(old.device), old.device_mesh, old.placements, src_data_rank=None)
        old, new = old.to_local(), new.to_local()
    old.copy_(new)


def storage(leaf: Any) -> int:
    """Return what tells the memory of a tensor from that of others."""
    return (leaf.to_local() if is_sharded(leaf) else leaf).untyped_storage()._cdata
