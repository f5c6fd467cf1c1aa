"""A small regression in float64, and optimizers to train it with, on one process or on several."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

import functopt as fo

STEPS = 6
BATCH = 16


class Net(nn.Module):
    """No dimension is a multiple of the number of processes, and of the last layer some get nothing at all.

    The gate takes part in every second step only: at the others its parameters have no gradient.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 7)
        self.norm = nn.LayerNorm(7)
        self.gate = nn.Linear(7, 7)
        self.last = nn.Linear(7, 3)

    def forward(self, x: Tensor, gated: bool = False) -> Tensor:
        x = torch.tanh(self.norm(self.first(x)))
        return self.last(x * self.gate(x) if gated else x)


def net() -> Net:
    torch.manual_seed(0)
    return Net().double()


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(STEPS, BATCH, 5, generator=generator, dtype=torch.float64)
    return x, torch.randn(STEPS, BATCH, 3, generator=generator, dtype=torch.float64)


def matrices(params: Any) -> Any:
    return {name: p.ndim > 1 for name, p in params.items()}


OPTIMIZERS: dict[str, Callable[[], fo.Transform]] = {
    "adamw": lambda: fo.adamw(1e-2, weight_decay=0.1),
    "sgd": lambda: fo.sgd(0.05, 0.9),
    "sgd, no state": lambda: fo.sgd(0.05),
    "lion": lambda: fo.lion(1e-2),
    "clipped adamw": lambda: fo.chain(fo.clip_by_global_norm(0.1), fo.adamw(1e-2)),
    "clipped between": lambda: fo.chain(fo.scale_by_adam(), fo.clip_by_global_norm(0.1), fo.scale_by_lr(0.1)),
    "masked adamw": lambda: fo.adamw(1e-2, weight_decay=0.1, mask=matrices),
    "lamb": lambda: fo.lamb(1e-2),
    "clipped lamb": lambda: fo.chain(fo.clip_by_global_norm(0.1), fo.lamb(1e-2)),
    "larc": lambda: fo.larc(1e-2),
    "adafactor": lambda: fo.adafactor(1e-2),
    "adafactor, momentum": lambda: fo.adafactor(1e-2, momentum=0.9, form="optax", min_dim_size_to_factor=2),
    "lookahead": lambda: fo.lookahead(fo.adam(1e-2), sync_period=2),
    "lookahead, clipped": lambda: fo.lookahead(
        fo.chain(fo.clip_by_global_norm(0.1), fo.adamw(1e-2)), sync_period=2
    ),
    "average": lambda: fo.chain(fo.adamw(1e-2), fo.average_params(0.9, start="initial")),
    "schedule": lambda: fo.adamw(fo.cosine_decay_schedule(1e-2, STEPS)),
    "clipped schedule": lambda: fo.chain(fo.clip_by_global_norm(0.1), fo.adamw(fo.linear_schedule(1e-2, 0.0, STEPS))),
}  # fmt: skip


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: range = range(STEPS),
    part: slice = slice(None),
    gated: int = 2,
) -> list[dict[str, Tensor]]:
    """Train on part of every batch and return the whole parameters after each step, by the names of ``Net``.

    Args:
        gated: the gate takes part in every so many steps.
    """
    x, y = data()
    trajectory = []
    for step in steps:
        optimizer.zero_grad()
        for group in optimizer.param_groups:
            if not isinstance(group["lr"], tuple):  # a schedule
                group["lr"] = 1e-2 / (1 + step)
        out = model(x[step, part], gated=step % gated == gated - 1)
        nn.functional.mse_loss(out, y[step, part]).backward()
        optimizer.step()
        trajectory.append(
            {name.removeprefix("module."): whole(p).clone() for name, p in model.named_parameters()}
        )  # fmt: skip
    return trajectory


def whole(tensor: Any) -> Tensor:
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def mine() -> slice:
    """Return which part of a batch this process has."""
    size = BATCH // dist.get_world_size()
    return slice(dist.get_rank() * size, (dist.get_rank() + 1) * size)


def deviation(some: list[dict[str, Tensor]], others: list[dict[str, Tensor]]) -> float:
    """Return by how much two trajectories differ at most; NaN if there is one."""
    assert [[*step] for step in some] == [[*step] for step in others]
    return largest((a[name] - b[name]).abs() for a, b in zip(some, others, strict=True) for name in a)


def largest(tensors: Iterable[Tensor]) -> float:
    return torch.stack([x.max() for x in tensors]).max().item()


def start() -> Report:
    """Join the other processes; warnings are errors from here on."""
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    return Report()


class Report:
    """What a script has found out, which the first process writes into the file named by its first argument."""

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}

    def __setitem__(self, case: str, value: Any) -> None:
        self.found[case] = value
        if int(os.environ["RANK"]) == 0:
            Path(sys.argv[1]).write_text(json.dumps(self.found))


def same_on_all(value: Any) -> Any:
    """Check that all processes have found the same."""
    others: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(others, value)
    assert all(other == value for other in others), others
    return value


def message_of(call: Callable[[], Any]) -> str:
    """Return what the error says that a call raises."""
    try:
        call()
    except (NotImplementedError, TypeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    raise AssertionError("nothing was raised")
