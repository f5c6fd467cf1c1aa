"""The classic training loop of PyTorch, with a functional optimizer in it.

``StatefulOptimizer`` is a ``torch.optim.Optimizer``: the loop is the usual one, and torch's own ``OneCycleLR`` drives
the learning rate and Adam's beta1. What is new is the optimizer itself, a chain of pure functions put together on the
spot: gradients are clipped, and weights decay while biases do not.

Run it with ``python examples/classic_loop.py``; it takes about ten seconds.
"""

from __future__ import annotations

import argparse

import digits
import torch
from torch.nn.functional import cross_entropy

import functopt as fo


def main(epochs: int = 12, seed: int = 0, batch_size: int = 64, peak_lr: float = 1e-2) -> float:
    """Train, print the course of it and return the accuracy on the test images."""
    data = digits.load(seed)
    model = digits.conv_net(seed)
    steps_per_epoch = len(data.train.labels) // batch_size

    no_bias = {name: not name.endswith("bias") for name, _ in model.named_parameters()}
    tx = fo.chain(fo.clip_by_global_norm(1.0), fo.adamw(weight_decay=0.05, mask=no_bias))
    optimizer = fo.StatefulOptimizer(model.named_parameters(), tx, lr=peak_lr)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak_lr, total_steps=epochs * steps_per_epoch)

    for step, batch in enumerate(digits.batches(data.train, batch_size, epochs, seed), 1):
        optimizer.zero_grad()
        loss = cross_entropy(model(batch.images), batch.labels)
        loss.backward()
        optimizer.step()
        scheduler.step()
        if step % steps_per_epoch == 0:
            report(step // steps_per_epoch, loss.item(), model, data.valid, optimizer.param_groups[0])

    test = evaluate(model, data.test)
    print(f"test accuracy {test:.2%}")
    return test


def report(epoch: int, loss: float, model: torch.nn.Module, valid: digits.Split, group: dict) -> None:
    hypers = f"lr {group['lr']:.1e}, beta1 {group['beta1']:.3f}"
    print(f"epoch {epoch:2d}: loss {loss:.4f}, validation accuracy {evaluate(model, valid):.2%}; {hypers}")


@torch.no_grad()
def evaluate(model: torch.nn.Module, data: digits.Split) -> float:
    return digits.accuracy(model(data.images), data.labels)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0, help="of the split, the first weights and the batches")
    main(**vars(parser.parse_args()))
