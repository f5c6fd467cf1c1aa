"""Data parallel training with DDP: every process has the whole network and its part of every batch.

Nothing about the optimizer is different: gradients are averages over all processes by the time it sees them. It may be
made before or after the network is wrapped.

Run it with ``torchrun --nproc-per-node=2 examples/ddp.py``.
"""

from __future__ import annotations

import argparse

import digits
import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import functopt as fo


def main(epochs: int = 6, batch_size: int = 32) -> None:
    """Train and print the loss of every epoch; ``batch_size`` is that of one process."""
    train = digits.load(seed=0).train
    model = DistributedDataParallel(digits.conv_net(seed=0))
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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=6)
    arguments = parser.parse_args()
    dist.init_process_group("gloo")
    main(**vars(arguments))
    dist.destroy_process_group()  # out here, where the network has gone: it would keep the connections open
