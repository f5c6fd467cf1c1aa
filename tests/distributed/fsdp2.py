"""FSDP2: parameters and states that are DTensors, against the same training on one process."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from problem import OPTIMIZERS, STEPS, deviation, message_of, mine, net, start, train, whole
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.debug import CommDebugMode

import functopt as fo
from functopt import eager, pieces


def sharded(mesh: Any = None) -> Any:
    model = net()
    for layer in (model.first, model.gate):
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def check_state(optimizer: fo.StatefulOptimizer) -> None:
    """Every tensor is spread as its parameter is, and numbers are plain."""
    saved = optimizer.state_dict()["state"]
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for i, param in enumerate(params):
        tensors = {**optimizer.state[param], **{f"saved {name}": x for name, x in saved.get(i, {}).items()}}
        for name, leaf in tensors.items():
            if not leaf.ndim:
                assert type(leaf) is torch.Tensor, (i, name, type(leaf))
                continue
            assert isinstance(leaf, DTensor), (i, name)
            assert leaf.device_mesh == param.device_mesh
            for here, there in zip(leaf.placements, param.placements, strict=True):
                spread = not there.is_shard() or leaf.shape[there.dim] == param.shape[there.dim]
                assert here == there or (not spread and here.is_replicate()), (i, name, here, there)
            if leaf.shape == param.shape:
                assert leaf.to_local().shape == param.to_local().shape


def run(tx: fo.Transform, mesh: Any = None, **options: Any) -> float:
    alone = net()
    expected = train(alone, fo.StatefulOptimizer(alone.named_parameters(), tx))
    model = sharded(mesh)
    optimizer = fo.StatefulOptimizer(model.named_parameters(), tx, **options)
    got = train(model, optimizer, part=mine())
    check_state(optimizer)
    assert all(not leaf.ndim or isinstance(leaf, DTensor) for leaf in optimizer.state.get("shared", {}).values())
    return deviation(got, expected)


# on four processes, where the last layer's bias has no entry on one: norms of all, of leaves, of rows, and a lag
FEW = ("adamw", "masked adamw", "clipped between", "clipped lamb", "adafactor, momentum", "lookahead", "average")

TORCH: dict[str, Any] = {
    "adamw": lambda params: torch.optim.AdamW(params, 1e-2, weight_decay=0.1),
    "sgd": lambda params: torch.optim.SGD(params, 0.05, 0.9),
    "adafactor": lambda params: torch.optim.Adafactor(params, 1e-2),
}


def against_torch(name: str) -> float:
    alone, model = net(), sharded()
    gated = 1 if name == "adafactor" else 2  # of which there is one count of steps for all, where torch has one each
    expected = train(alone, TORCH[name](alone.parameters()), gated=gated)
    optimizer = fo.StatefulOptimizer(model.parameters(), OPTIMIZERS[name]())
    return deviation(train(model, optimizer, part=mine(), gated=gated), expected)


def groups() -> float:
    """A group that comes in after some steps, and a state that starts anew."""

    def trajectory(model: nn.Module, part: slice) -> Any:
        params = dict(model.named_parameters())
        bias = [(name, p) for name, p in params.items() if name.endswith("bias")]
        rest = [(name, p) for name, p in params.items() if not name.endswith("bias")]
        tx = fo.chain(fo.clip_by_global_norm(0.1), fo.adamw(1e-2))
        optimizer = fo.StatefulOptimizer([{"params": rest}], tx, weight_decay=0.1)
        out = train(model, optimizer, range(2), part)
        optimizer.add_param_group({"params": bias, "weight_decay": torch.tensor(0.01), "beta1": 0.8})
        out += train(model, optimizer, range(2, 4), part)
        optimizer.clear_state()
        return out + train(model, optimizer, range(4, STEPS), part)

    return deviation(trajectory(sharded(), mine()), trajectory(net(), slice(None)))


def collectives(name: str) -> int:
    """Return in how many operations the processes talk to each other at a step."""
    model = sharded()
    optimizer = fo.StatefulOptimizer(model.named_parameters(), OPTIMIZERS[name]())
    train(model, optimizer, range(2), mine())
    with CommDebugMode() as talk:
        optimizer.step()
    return talk.get_total_counts()


@fo.link
def centered() -> Any:
    """Subtract the mean of each row with a matrix that is not sharded, which cannot be multiplied with one that is."""

    def transform(updates, state, params):
        matrix = lambda n: torch.eye(n, dtype=torch.float64) - 1 / n
        return fo.tree.map(lambda u: u @ matrix(u.shape[-1]) if u.ndim == 2 else u, updates), state

    return transform


def impossible() -> str:
    model = sharded()
    optimizer = fo.StatefulOptimizer(model.parameters(), fo.chain(fo.trace(0.9), centered(), fo.scale_by_lr(0.1)))
    before = [whole(x).clone() for x in values(model, optimizer)]
    said = message_of(lambda: train(model, optimizer, range(1), mine()))
    assert all(torch.equal(a, whole(b)) for a, b in zip(before, values(model, optimizer), strict=True))
    return said


def values(model: nn.Module, optimizer: fo.StatefulOptimizer) -> list[Any]:
    return [*model.parameters(), *(leaf for p in model.parameters() for leaf in optimizer.state[p].values())]


def main() -> None:
    report = start()
    four = dist.get_world_size() == 4
    for name in FEW if four else OPTIMIZERS:
        report[name] = run(OPTIMIZERS[name]())
    for name in () if four else TORCH:
        report[f"{name} of torch"] = against_torch(name)
    report["groups"] = groups()
    report["collectives"] = {name: collectives(name) for name in ("adamw", "lookahead", "clipped adamw", "lamb")}
    if four:
        for name in ("clipped adamw", "lamb", "adafactor"):
            report[f"{name}, replicas"] = run(
                OPTIMIZERS[name](), init_device_mesh("cpu", (2, 2), mesh_dim_names=("copies", "shards"))
            )
    refuse = lambda: fo.StatefulOptimizer(sharded().named_parameters(), fo.adamw(), compile=True)
    report["compiled"] = message_of(refuse)
    report["impossible"] = impossible()
    eager.PIECE, eager.SMALL, pieces.SAMPLE = 16, 8, 4
    for name in ("adamw", "clipped adamw", "lookahead", "clipped schedule"):
        report[f"{name} in slices"] = run(OPTIMIZERS[name]())
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
