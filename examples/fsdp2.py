"""Sharded training with FSDP2: every process keeps its part of every parameter, and of the optimizer's state.

The optimizer is made after ``fully_shard``, with which the parameters become ``DTensor`` s. Its state is sharded like
them, and the norm by which gradients are clipped is that of all processes together.

Run it with ``torchrun --nproc-per-node=2 examples/fsdp2.py``.
"""

from __future__ import annotations

import argparse
from typing import Any

import digits
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy

import functopt as fo


def main(epochs: int = 6, batch_size: int = 32) -> None:
    """Train and print the loss of every epoch; ``batch_size`` is that of one process."""
    train = digits.load(seed=0).train
    model = digits.conv_net(seed=0)
    for layer in model.children():
        if [*layer.parameters()]:
            fully_shard(layer)
    fully_shard(model)
    tx = fo.chain(fo.clip_by_global_norm(1.0), fo.adamw(weight_decay=0.05))
    optimizer = fo.StatefulOptimizer(model.named_parameters(), tx, lr=3e-3)

    for epoch in range(1, epochs + 1):
        total = torch.zeros(())
        batches = [*digits.batches(train, batch_size * dist.get_world_size(), 1, seed=epoch)]
        for batch in batches:  # the same on every process, which takes its own part of it
            mine = slice(dist.get_rank(), None, dist.get_world_size())
            optimizer.zero_grad()
            loss = cross_entropy(model(batch.images[mine]), batch.labels[mine])
            loss.backward()
            optimizer.step()
            total += loss.detach() / len(batches)
        dist.all_reduce(total)
        if dist.get_rank() == 0:
            print(f"epoch {epoch}: loss {total / dist.get_world_size():.4f}")

    moments: Any = next(iter(optimizer.state.values()))["mu.total"]
    print(f"process {dist.get_rank()} has {list(moments.to_local().shape)} of moments {list(moments.shape)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=6)
    arguments = parser.parse_args()
    dist.init_process_group("gloo")
    main(**vars(arguments))
    dist.destroy_process_group()  # out here, where the network has gone: it would keep the connections open
