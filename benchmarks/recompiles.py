"""How often an optimizer is compiled while learning rate, momentum and weight decay follow a one-cycle schedule."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

from benchmarks import peers, report
from benchmarks.measure import target
from benchmarks.worker import FailedError, Worker

TITLE = "Graphs compiled over a one-cycle schedule of lr, momentum and weight decay"

SHAPES = [[64, 64], [64]]


def one_cycle(step: int, steps: int) -> tuple[float, float, float]:
    """Return learning rate, beta1 and weight decay: up and down, down and up, up."""
    position = step / steps
    wave = 0.5 - 0.5 * math.cos(2 * math.pi * position)
    return 1e-5 + 1e-3 * wave, 0.95 - 0.1 * wave, 0.01 * (1 + position)


# In the worker. Each returns a function of the step's hypers.


def functopt_compiled() -> Callable[[float, float, float], Any]:
    """A pure step, given numbers."""
    import functopt as fo
    from benchmarks.peers import ours

    tx, params, grads = ours.TRANSFORMS["adamw"](), fo.pack(_tensors()), fo.pack(_tensors())
    state = tx.init(params)
    update = fo.compile(lambda params, state, grads, hypers: tx.update(grads, state, params, hypers), donate=(0, 1))

    def step(lr: float, beta1: float, weight_decay: float) -> None:
        update(params, state, grads, {"lr": lr, "beta1": beta1, "weight_decay": weight_decay})

    return step


def functopt_stateful_compiled() -> Callable[[float, float, float], Any]:
    """StatefulOptimizer(compile=True), numbers assigned to its group."""
    import functopt as fo
    from benchmarks.peers import ours

    optimizer = fo.StatefulOptimizer(_parameters(), ours.TRANSFORMS["adamw"](), compile=True)

    def step(lr: float, beta1: float, weight_decay: float) -> None:
        optimizer.param_groups[0].update(lr=lr, beta1=beta1, weight_decay=weight_decay)
        optimizer.step()

    return step


def torch_float_lr() -> Callable[[float, float, float], Any]:
    """torch.compile of AdamW.step; the learning rate is a number, the only one that changes."""
    optimizer, update = _torch(1e-3)

    def step(lr: float, beta1: float, weight_decay: float) -> None:
        optimizer.param_groups[0]["lr"] = lr
        update()

    return step


def torch_tensor_lr() -> Callable[[float, float, float], Any]:
    """The same with the learning rate in a tensor, the only thing that changes."""
    import torch

    optimizer, update = _torch(torch.tensor(1e-3))

    def step(lr: float, beta1: float, weight_decay: float) -> None:
        optimizer.param_groups[0]["lr"].fill_(lr)
        update()

    return step


def torch_tensor_lr_all() -> Callable[[float, float, float], Any]:
    """The same; betas and weight decay, which are numbers, change too."""
    import torch

    optimizer, update = _torch(torch.tensor(1e-3))

    def step(lr: float, beta1: float, weight_decay: float) -> None:
        group = optimizer.param_groups[0]
        group["lr"].fill_(lr)
        group["betas"], group["weight_decay"] = (beta1, 0.999), weight_decay
        update()

    return step


def optax_injected() -> Any:
    """optax's inject_hyperparams under jit, and jax's count of what it compiled."""
    jax: Any = import_module("jax")
    optax: Any = import_module("optax")
    tx = optax.inject_hyperparams(optax.adamw)(1e-3, weight_decay=0.01)
    params = grads = [jax.numpy.ones(shape) for shape in SHAPES]
    state = tx.init(params)

    @jax.jit
    def update(params: Any, state: Any) -> Any:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    def step(lr: float, beta1: float, weight_decay: float) -> None:
        nonlocal params, state
        new = {"learning_rate": lr, "b1": beta1, "weight_decay": weight_decay}
        state.hyperparams.update({name: jax.numpy.asarray(value) for name, value in new.items()})
        params, state = update(params, state)

    return step, update._cache_size


def _tensors() -> list[Any]:
    import torch

    return [torch.ones(shape) for shape in SHAPES]


def _parameters() -> list[Any]:
    import torch

    params = [torch.nn.Parameter(tensor) for tensor in _tensors()]
    for param in params:
        param.grad = torch.ones_like(param)
    return params


def _torch(lr: Any) -> tuple[Any, Callable[[], Any]]:
    import torch

    optimizer = torch.optim.AdamW(_parameters(), lr=lr, foreach=False)
    return optimizer, torch.compile(optimizer.step)


CASES = {  # by what changes: the contender, and its step
    "functopt compiled: all three, as numbers": (peers.OURS, functopt_compiled),
    "functopt stateful compiled: all three, as numbers": ("functopt stateful compiled", functopt_stateful_compiled),
    "torch compiled: lr, a number": ("torch compiled", torch_float_lr),
    "torch compiled: lr, a tensor": ("torch compiled", torch_tensor_lr),
    "torch compiled: lr, a tensor, and betas and decay": ("torch compiled", torch_tensor_lr_all),
    "optax: all three, inject_hyperparams": ("optax", optax_injected),
}


def count(case: str, steps: int) -> dict[str, Any]:
    """Run the schedule and return what the compiler counted."""
    step, graphs_of_jax = made if isinstance(made := CASES[case][1](), tuple) else (made, None)
    began = time.perf_counter()
    for i in range(steps):
        step(*one_cycle(i, steps))
    seconds = time.perf_counter() - began
    if graphs_of_jax:
        return {"graphs": graphs_of_jax(), "recompiles": graphs_of_jax() - 1, "why": "", "seconds": seconds}
    from torch._dynamo import config, utils

    graphs = utils.counters["stats"]["unique_graphs"]
    reasons = [str(reason) for metrics in utils.get_compilation_metrics() if (reason := metrics.recompile_reason)]
    why = reasons[0].splitlines()[0] if reasons else ""
    gave_up = graphs >= config.recompile_limit
    return {"graphs": graphs, "recompiles": len(reasons), "gave_up": gave_up, "why": why, "seconds": seconds}


# In the parent


def run(options: Any) -> dict[str, Any]:
    """Count for every case."""
    steps, rows, lines = 20 if options.quick else 1000, [], []
    for case, (contender, _) in CASES.items():
        if contender not in options.contenders:
            continue
        row: dict[str, Any] = {"name": case, "steps": steps}
        with Worker() as worker:
            try:
                row.update(worker.call("recompiles:count", 5 * options.limit, case=case, steps=steps))
            except FailedError as error:
                row["skipped"] = str(error)
                report.say(f"  {case}: skipped: {error}")
        rows.append(row)
        if case.startswith("functopt") and "graphs" in row:
            lines.append(target(f"{case}: recompiles over {steps} steps", row["graphs"] - 1 + row["recompiles"], 0))
    return {"rows": rows, "targets": lines}


def table(result: dict[str, Any]) -> str:
    """Return the table."""
    lines = [["what changes at every step", "steps", "graphs", "recompiles", "then", "seconds in all", "first reason"]]
    for row in result["rows"]:
        if "skipped" in row:
            lines.append([row["name"], str(row["steps"]), "-", "-", "", "", f"skipped: {row['skipped']}"])
            continue
        then = "gives up, runs eagerly" if row.get("gave_up") else ""
        numbers = [str(row[key]) for key in ("steps", "graphs", "recompiles")]
        lines.append([row["name"], *numbers, then, f"{row['seconds']:.1f}", row["why"][:100]])
    return report.grid(lines)


def chart(result: dict[str, Any], path: Any) -> None:
    """Draw the number of graphs."""
    with report.figure(path, 1, 1, width=6.5, height=2.5) as axes:
        graphs = {row["name"]: row["graphs"] for row in result["rows"] if "graphs" in row}
        report.bars(axes[0][0], graphs, "{:d}")
        axes[0][0].set_xlabel("graphs compiled", fontsize=7)
