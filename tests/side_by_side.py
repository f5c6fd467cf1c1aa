"""What the tests of StatefulOptimizer share: a small network, its data, and pairs of our optimizers with torch's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import lr_scheduler

import functopt as fo
from functopt import StatefulOptimizer, tree

# Against torch.optim in float64: the equations are the same, the order of operations is not, so every step differs by a
# few units in the last place (1e-16), which training for some dozen steps amplifies.
RTOL, ATOL = 1e-10, 1e-13


def net(dtype: torch.dtype = torch.float64, seed: int = 0) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)


def data(step: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(16, 5, generator=generator, dtype=torch.float64)
    return x.to(dtype), (x.sum(1) > 0).long() + (x[:, 0] > 0).long()


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> Tensor:
    x, y = data(step, next(model.parameters()).dtype)
    optimizer.zero_grad()
    loss = cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    return loss.detach()


def params_close(ours: nn.Module, theirs: nn.Module) -> None:
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=RTOL, atol=ATOL, msg=lambda m, name=name: f"{name}: {m}")


def same(a: Any, b: Any) -> bool:
    """Whether two trees are equal bit for bit."""
    leaves, others = (list(tree.leaves_with_paths(t)) for t in (a, b))
    return [p for p, _ in leaves] == [p for p, _ in others] and all(
        torch.equal(x, y) if isinstance(x, Tensor) else x == y
        for (_, x), (_, y) in zip(leaves, others, strict=True)
    )  # fmt: skip


def snapshot(optimizer: StatefulOptimizer) -> Any:
    """What a step may change: parameters, state and hypers."""
    params = [p.detach().clone() for group in optimizer.param_groups for p in group["params"]]
    hypers = [
        {k: v for k, v in group.items() if k not in ("params", "param_names")} for group in optimizer.param_groups
    ]
    state = optimizer.state_dict()["state"]
    return tree.map(lambda t: t.clone() if isinstance(t, Tensor) else t, [params, state, hypers])


# debias="power" is how torch debiases; see test_a_cycled_beta1_is_debiased_by_its_weights
PAIRS: dict[str, tuple[Callable[..., StatefulOptimizer], Callable[..., torch.optim.Optimizer]]] = {
    "sgd": (
        lambda params: StatefulOptimizer(params, fo.sgd(0.1, momentum=0.9, weight_decay=1e-2)),
        lambda params: torch.optim.SGD(params, 0.1, momentum=0.9, weight_decay=1e-2),
    ),
    "sgd/dampening": (
        lambda params: StatefulOptimizer(params, fo.sgd(0.1, momentum=0.9, dampening=0.3)),
        lambda params: torch.optim.SGD(params, 0.1, momentum=0.9, dampening=0.3),
    ),
    "adamw": (
        lambda params: StatefulOptimizer(params, fo.adamw(0.01, debias="power")),
        lambda params: torch.optim.AdamW(params, 0.01),
    ),
    "rmsprop": (
        lambda params: StatefulOptimizer(params, fo.rmsprop(0.01, momentum=0.5)),
        lambda params: torch.optim.RMSprop(params, 0.01, momentum=0.5),
    ),
}

SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "step": lambda o: lr_scheduler.StepLR(o, 5, gamma=0.3),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 20),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, factor=0.5, patience=1),
    "onecycle": lambda o: lr_scheduler.OneCycleLR(o, 0.05, total_steps=31),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.05, step_size_up=7),
    "warm restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 7),
}
