"""torch.distributed.checkpoint: what one run saves halfway, another goes on with, on other numbers of processes too.

Started with a folder for the checkpoints as the second argument, and ``save`` or ``load`` as the third.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from problem import OPTIMIZERS, STEPS, deviation, mine, net, start, train
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

import functopt as fo

HALF = STEPS // 2
# entries like the parameters, none, of other shapes, of all parameters together, and all of these with a schedule
NAMES = ("adamw", "sgd, no state", "adafactor, momentum", "lookahead", "clipped schedule")
OPTIONS = {
    "plain": StateDictOptions(),
    "flat": StateDictOptions(flatten_optimizer_state_dict=True),
    "full": StateDictOptions(full_state_dict=True),
    "on the first": StateDictOptions(full_state_dict=True, cpu_offload=True, broadcast_from_rank0=True),
}


def sharded() -> Any:
    model = net()
    fully_shard(model.first)
    fully_shard(model.gate)
    return fully_shard(model)


def make(name: str, model: nn.Module, turn: int = 1) -> fo.StatefulOptimizer:
    """Return an optimizer with two groups; ``turn=-1`` turns the order of the parameters in them around."""
    params = [*model.named_parameters()][::turn]
    groups = [[(n, p) for n, p in params if (p.ndim > 1) == large] for large in (True, False)]
    return fo.StatefulOptimizer([{"params": group} for group in groups], OPTIMIZERS[name]())


def uninterrupted(name: str) -> Any:
    alone = net()
    return train(alone, make(name, alone))


def save(folder: Path) -> None:
    for name in NAMES:
        for kind, model in (("sharded", sharded()), ("plain", net())):
            optimizer = make(name, model)
            train(model, optimizer, range(HALF), mine() if kind == "sharded" else slice(None))
            state = {"model": get_model_state_dict(model), "optimizer": get_optimizer_state_dict(model, optimizer)}
            dcp.save(state, checkpoint_id=folder / f"{name} {kind}")  # pyright: ignore[reportPrivateImportUsage]


def load(name: str, model: nn.Module, path: Path) -> fo.StatefulOptimizer:
    optimizer = make(name, model, turn=-1)
    state = {"model": get_model_state_dict(model), "optimizer": get_optimizer_state_dict(model, optimizer)}
    dcp.load(state, checkpoint_id=path)  # pyright: ignore[reportPrivateImportUsage]
    set_model_state_dict(model, state["model"])
    set_optimizer_state_dict(model, optimizer, state["optimizer"])
    return optimizer


def go_on(name: str, model: nn.Module, optimizer: fo.StatefulOptimizer) -> float:
    part = mine() if isinstance(model, (FSDPModule, DistributedDataParallel)) else slice(None)
    return deviation(train(model, optimizer, range(HALF, STEPS), part), uninterrupted(name)[HALF:])


def in_memory(name: str, options: StateDictOptions) -> float:
    """Through the state dicts alone, without a file, from one sharded model to another."""
    model = sharded()
    optimizer = make(name, model)
    train(model, optimizer, range(HALF), mine())
    whole = StateDictOptions(full_state_dict=options.full_state_dict, cpu_offload=options.cpu_offload)
    whole.flatten_optimizer_state_dict = options.flatten_optimizer_state_dict
    weights = get_model_state_dict(model, options=whole)
    state = get_optimizer_state_dict(model, optimizer, options=whole)
    other = sharded()
    again = make(name, other)
    set_model_state_dict(other, weights, options=options)
    set_optimizer_state_dict(other, again, state, options=options)
    return go_on(name, other, again)


def directly(name: str) -> float:
    """A checkpoint of one process, loaded by the optimizer's own method into a sharded one, and back again."""
    alone = net()
    optimizer = make(name, alone)
    train(alone, optimizer, range(HALF))
    model = sharded()
    set_model_state_dict(model, alone.state_dict(), options=StateDictOptions(full_state_dict=True))
    again = make(name, model)
    again.load_state_dict(optimizer.state_dict())
    optimizer = make(name, alone)
    optimizer.load_state_dict(again.state_dict())
    return max(go_on(name, model, again), go_on(name, alone, optimizer))


def main() -> None:
    report = start()
    folder, task = Path(sys.argv[2]), sys.argv[3]
    if task == "save":
        save(folder)
        for name in NAMES:
            for how, options in OPTIONS.items():
                if name == "sgd, no state" and options.full_state_dict:
                    continue  # torch cannot do it with its own SGD either
                report[f"{name}, {how}"] = in_memory(name, options)
            report[f"{name}, directly"] = directly(name)
    else:
        for name in NAMES:
            for kind in ("sharded", "plain"):
                replicas = DistributedDataParallel(net(), find_unused_parameters=True)
                for to, model in (("sharded", sharded()), ("plain", net()), ("DDP", replicas)):
                    optimizer = load(name, model, folder / f"{name} {kind}")
                    report[f"{name}, {kind} to {to}"] = go_on(name, model, optimizer)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
