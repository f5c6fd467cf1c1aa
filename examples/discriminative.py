"""Learning rates of their own for every part of a network, in the pure form: no groups, no freezing, only a tree.

What ``transfer.py`` does with layer groups is done here with pure functions. The parameters are a tree of the network's
three parts, and the learning rate is a tree that is a prefix of it: one number stands for all that lies below. In the
first phase the convolutions have the learning rate 0 and so stay as they are, while their normalisation learns; in the
second phase every part has a rate of its own. The numbers are those of the stateful form.

Run it with ``python examples/discriminative.py``; it takes about ten seconds.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
import transfer
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value
from torch.nn.functional import cross_entropy
from transfer import BASE_LR, BATCH, LR_MULT, WEIGHT_DECAY, Task, task

import functopt as fo
from functopt.training import Mean, Recorder, accuracy, hypers_at, one_cycle

Tree = Any


def as_tree(tensors: Any) -> Tree:
    """Return named tensors as a tree: ``first.conv.weight`` lies at ``["first"]["conv"]["weight"]``."""
    out: Tree = {}
    for name, tensor in tensors:
        *path, last = name.split(".")
        below = out
        for part in path:
            below = below.setdefault(part, {})
        below[last] = tensor.detach().clone()
    return out


def by_name(tree: Tree) -> dict[str, Tensor]:
    """Return a tree as named tensors again."""
    return dict(fo.tree.leaves_with_paths(tree))


# One number stands for everything below it. Biases and normalisation do not decay, as in the other example.
FROZEN = {"conv": 0.0, "norm": BASE_LR / 10}
HEAD_ONLY = {"first": FROZEN, "second": FROZEN, "head": BASE_LR}
ALL = {"first": BASE_LR / 2 / LR_MULT, "second": BASE_LR / 2 / LR_MULT**0.5, "head": BASE_LR / 2}
DECAY = {part: {"conv": WEIGHT_DECAY, "norm": 0.0} for part in ("first", "second")}
DECAY["head"] = {"weight": WEIGHT_DECAY, "bias": 0.0}


def schedules(lrs: Tree, **options: Any) -> dict[str, Any]:
    """Return the one-cycle schedules of a tree of learning rates."""
    mom = one_cycle(1.0, **options)["mom"]
    return {"lr": fo.tree.map(lambda lr: one_cycle(lr, **options)["lr"], lrs), "beta1": mom}


class Pure:
    """A network as functions of its parameters and buffers."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def loss(self, params: Tree, buffers: dict[str, Tensor], x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss, and the buffers that normalisation has moved on."""
        after = {name: buffer.clone() for name, buffer in buffers.items()}
        return cross_entropy(functional_call(self.model, {**by_name(params), **after}, (x,)), y), after

    def validate(self, params: Tree, buffers: dict[str, Tensor], data: Any) -> dict[str, Any]:
        """Return the loss and the accuracy over the validation data."""
        metrics = {"valid_loss": Mean(cross_entropy), "accuracy": Mean(accuracy)}
        self.model.eval()
        for x, y in data:
            scores = functional_call(self.model, {**by_name(params), **buffers}, (x,))
            for metric in metrics.values():
                metric.update(scores, y)
        self.model.train()
        return {name: metric.value() for name, metric in metrics.items()}


def transferred(model: nn.Module, data: Task, epochs: tuple[int, int]) -> Recorder:
    """Train the head, then everything."""
    model.train()
    pure, recorder = Pure(model), Recorder()
    params, buffers = as_tree(model.named_parameters()), dict(model.named_buffers())
    tx = fo.adamw(weight_decay=DECAY)
    differentiate = grad_and_value(pure.loss, has_aux=True)
    phases = [(epochs[0], schedules(HEAD_ONLY, pct_start=0.99)), (epochs[1], schedules(ALL, pct_start=0.3, div=5.0))]
    for count, own in phases:
        state, step = tx.init(params), 0
        hypers = hypers_at(own, count * len(data.train), tx)
        for _ in range(count):
            for x, y in data.train:
                grads, (loss, buffers) = differentiate(params, buffers, x, y)
                now = hypers(step)
                recorder.record(loss, now)
                params, state = tx.update(grads, state, params, now)
                step += 1
            recorder.record_metrics(len(recorder.epochs), pure.validate(params, buffers, data.valid))
    return recorder


def main(
    pretrain_epochs: int = 8,
    epochs: tuple[int, int] = (4, 8),
    per_class: int = 4,
    seed: int = 0,
    out: str = "",
    dtype: torch.dtype = torch.float32,
) -> tuple[Recorder, Recorder]:
    """Train in both forms, say how far they agree, and draw a picture if there is a name for it."""
    data = lambda: task(range(5, 10), per_class, BATCH, seed, dtype)
    model, _ = transfer.pretrained(pretrain_epochs, seed, dtype)
    pure = transferred(model, data(), epochs)  # which leaves the model as it is
    stateful = transfer.transfer(model, data(), epochs)
    print(f"{'epoch':>5} {'accuracy':>9} {'valid loss':>11} {'stateful':>11}")
    for row, other in zip(pure.epochs, stateful.epochs, strict=True):
        losses = f"{row['valid_loss']:11.5f} {other['valid_loss']:11.5f}"
        print(f"{row['epoch']:5d} {row['accuracy']:9.1%} {losses}")
    apart = abs(pure.losses - stateful.losses).max()
    print(f"the losses of {len(pure)} steps differ from those of the stateful form by {apart:.1e} at most")
    if out:
        frozen_steps = int(pure.epochs[epochs[0] - 1]["step"])
        runs = {"stateful": stateful, "pure": pure}
        transfer.draw(runs, pure.lines("lr"), frozen_steps).savefig(out, dpi=120)
        print(f"picture: {out}")
    return pure, stateful


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pretrain-epochs", type=int, default=8)
    parser.add_argument("--epochs", type=int, nargs=2, default=(4, 8), help="of the head, and after that of everything")
    parser.add_argument("--per-class", type=int, default=4, help="images of each new digit to train on")
    parser.add_argument("--seed", type=int, default=0, help="of the split, the weights and the batches")
    parser.add_argument("--out", default="discriminative.png", help="the picture; empty for none")
    given = parser.parse_args()
    main(given.pretrain_epochs, tuple(given.epochs), given.per_class, given.seed, given.out)
