"""A training loop with ``torch.func`` alone: a step is a pure function from parameters and state to new ones.

The network only lends its structure; no module is changed and no gradient is stored. The learning rate is a schedule, a
hyper like any other: it is the default of ``lr``, and the optimizer counts the steps in its state. Because the step is
pure it can be compiled as it stands (``--compile``, which for so short a run costs more time than it saves), mapped
over many configurations, or differentiated.

Run it with ``python examples/functional_loop.py``; it takes about ten seconds.
"""

from __future__ import annotations

import argparse

import digits
import torch
from torch import Tensor
from torch.func import functional_call, grad_and_value
from torch.nn.functional import cross_entropy

import functopt as fo


def main(epochs: int = 12, seed: int = 0, batch_size: int = 64, peak_lr: float = 1e-2, compile: bool = False) -> float:
    """Train, print the course of it and return the accuracy on the test images."""
    data = digits.load(seed)
    model = digits.conv_net(seed)
    steps_per_epoch = len(data.train.labels) // batch_size

    lr = fo.cosine_onecycle_schedule(epochs * steps_per_epoch, peak_lr)
    no_bias = {name: not name.endswith("bias") for name, _ in model.named_parameters()}
    tx = fo.chain(fo.clip_by_global_norm(1.0), fo.adamw(lr, weight_decay=0.05, mask=no_bias))

    def loss_of(params: dict[str, Tensor], batch: digits.Split) -> Tensor:
        return cross_entropy(functional_call(model, params, (batch.images,)), batch.labels)

    def step(params: dict[str, Tensor], state: fo.tree.Tree, batch: digits.Split):
        grads, loss = grad_and_value(loss_of)(params, batch)
        params, state = tx.update(grads, state, params)
        return params, state, loss

    def accuracy(params: dict[str, Tensor], split: digits.Split) -> float:
        return digits.accuracy(functional_call(model, params, (split.images,)), split.labels)

    run = torch.compile(step, fullgraph=True) if compile else step
    params = {name: param.detach() for name, param in model.named_parameters()}
    state = tx.init(params)
    for i, batch in enumerate(digits.batches(data.train, batch_size, epochs, seed), 1):
        params, state, loss = run(params, state, batch)
        if i % steps_per_epoch == 0:
            valid = accuracy(params, data.valid)
            print(f"epoch {i // steps_per_epoch:2d}: loss {loss.item():.4f}, validation accuracy {valid:.2%}")

    test = accuracy(params, data.test)
    print(f"test accuracy {test:.2%} after {state.count} steps")
    return test


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0, help="of the split, the first weights and the batches")
    parser.add_argument("--compile", action="store_true", help="compile the step")
    main(**vars(parser.parse_args()))
