"""DistributedDataParallel, eager and compiled, made before the optimizer or after it."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from problem import OPTIMIZERS, deviation, mine, net, same_on_all, start, train
from torch.nn.parallel import DistributedDataParallel

import functopt as fo

COMPILED = {"backend": "aot_eager"}


def run(
    tx: fo.Transform, *, ddp_first: bool = True, unused: bool = True, compile: Any = False, **options: Any
) -> float:
    """Train with DDP; without unused parameters it puts gradients into other buckets after the first step."""
    gated = 2 if unused else 1
    alone = net()
    expected = train(alone, fo.StatefulOptimizer(alone.named_parameters(), tx), gated=gated)
    model: Any = net()
    wrap = lambda: DistributedDataParallel(model, find_unused_parameters=unused, **options)
    model = wrap() if ddp_first else model
    optimizer = fo.StatefulOptimizer(model.named_parameters(), tx, compile=compile)
    model = model if ddp_first else wrap()
    got = train(model, optimizer, part=mine(), gated=gated)
    same_on_all({name: p.tolist() for name, p in model.named_parameters()})
    return deviation(got, expected)


def against_torch() -> float:
    alone = net()
    expected = train(alone, torch.optim.AdamW(alone.parameters(), 1e-2, weight_decay=0.1))
    model = DistributedDataParallel(net(), find_unused_parameters=True)
    return deviation(
        train(model, fo.StatefulOptimizer(model.parameters(), OPTIMIZERS["adamw"]()), part=mine()), expected
    )


def main() -> None:
    report = start()
    for name in ("adamw", "lion", "clipped adamw", "lamb", "adafactor", "lookahead", "clipped schedule"):
        report[name] = run(OPTIMIZERS[name]())
    report["adamw of torch"] = against_torch()
    for buckets in (True, False):
        report[f"gradients in buckets: {buckets}"] = run(
            OPTIMIZERS["adamw"](), unused=buckets, gradient_as_bucket_view=buckets
        )
    for first, buckets in (
        ((True, False), (False, True)) if dist.get_world_size() == 2 else ()
    ):  # compiling takes its time
        report[f"compiled, DDP first: {first}, gradients in buckets: {buckets}"] = run(
            OPTIMIZERS["clipped adamw"](),
            ddp_first=first,
            unused=first == buckets,
            compile=COMPILED,
            gradient_as_bucket_view=buckets,
        )
    if dist.get_world_size() == 2:
        report["compiled leaf by leaf"] = run(OPTIMIZERS["adafactor"](), unused=False, compile=COMPILED)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
