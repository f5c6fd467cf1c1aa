"""Optimizers of the catalog on parameters that are spread in two ways at once, against whole ones.

Started with a list of their names in JSON as the second argument.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from problem import largest, start, whole
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Partial, Replicate, Shard, distribute_tensor

import functopt as fo

sys.path.insert(0, str(Path(__file__).parents[1]))

from registry import BY_ID

SHAPES = {"weight": (7, 3), "bias": (3,), "gain": (), "kernel": (2, 3, 2), "row": (1, 5), "plain": (4, 3)}
STEPS = 3
Make = Callable[[str, Tensor], Tensor]


def leaves(seed: int, shift: float) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64) + shift for name, shape in SHAPES.items()
    }


def train(tx: fo.Transform, make: Make, make_grad: Make) -> tuple[dict[str, Tensor], fo.StatefulOptimizer]:
    params = {name: nn.Parameter(make(name, p)) for name, p in leaves(0, 1.0).items()}
    optimizer = fo.StatefulOptimizer(params.items(), tx)
    for step in range(STEPS):
        for name, grad in leaves(step + 1, 0.3).items():
            params[name].grad = None if step == 1 and name == "weight" else make_grad(name, grad)
        optimizer.step()
    return {name: whole(p) for name, p in params.items()}, optimizer


def main() -> None:
    report = start()
    world = dist.get_world_size()
    both = init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("some", "others"))
    one = both["others"]  # parameters on another mesh: a norm goes over all of them
    placements: dict[str, Any] = {
        "weight": (both, [Shard(0), Shard(1)]),
        "bias": (both, [Replicate(), Shard(0)]),
        "gain": (both, [Replicate(), Replicate()]),
        "kernel": (both, [Shard(2), Shard(1)]),
        "row": (one, [Shard(0)]),
    }

    def spread(name: str, x: Tensor) -> Tensor:
        return distribute_tensor(x, *placements[name]) if name in placements else x

    def spread_grad(name: str, x: Tensor) -> Any:
        if name == "bias":  # as it may come out of tensor parallelism: a sum that is still to be made
            return distribute_tensor(x, both, [Replicate(), Partial()])
        return spread(name, x)

    for row in (BY_ID[id] for id in json.loads(sys.argv[2])):
        expected, alone = train(row.make(), lambda _, x: x, lambda _, x: x)
        try:
            got, optimizer = train(row.make(), spread, spread_grad)
        except Exception:
            if "sharded" in row.exceptions:
                continue
            raise
        entries, others = (
            [leaf for own in o.state_dict()["state"].values() for leaf in own.values()] for o in (optimizer, alone)
        )
        pairs = [*zip(got.values(), expected.values(), strict=True), *zip(entries, others, strict=True)]
        report[row.id] = largest((1 * whole(a) - 1 * b).abs() / (1 + (1 * b).abs()) for a, b in pairs)  # bools too
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
