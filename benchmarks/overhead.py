"""What StatefulOptimizer takes for itself in an eager step: the time outside the optimizer's own functions.

What it does for itself is looking at groups and hypers, collecting gradients, cutting parameters into pieces, and
copying small ones together and apart. What the optimizer does is everything within its functions, and within the tapes
of them that are played back.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks import models, report
from benchmarks.measure import in_turn, summary, target

TITLE = "Seconds that an eager step spends outside the optimizer, of a step of torch's for-loop"

LIMIT = 0.15
SIZES = ["resnet50", "mlp1000"]


class Clock:
    """Adds up the seconds within some functions, nested ones once."""

    def __init__(self) -> None:
        self.seconds, self._depth = 0.0, 0

    @contextlib.contextmanager
    def within(self, owner: Any, name: str) -> Iterator[None]:
        """Count what a method takes meanwhile."""
        function = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            self._depth += 1
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self._depth -= 1
                if not self._depth:
                    self.seconds += time.perf_counter() - began

        setattr(owner, name, timed)
        try:
            yield
        finally:
            setattr(owner, name, function)


def run(options: Any) -> dict[str, Any]:
    """Measure AdamW at every size, in this process."""
    import functopt as fo
    from functopt.tape import Tape

    clock, rows = Clock(), []
    for model in ["tiny"] if options.quick else SIZES:
        shapes = models.MODELS[model]()
        ours, theirs = _parameters(shapes), _parameters(shapes)
        optimizer = fo.StatefulOptimizer(ours, fo.adamw())
        loop = torch.optim.AdamW(theirs, foreach=False)
        steps = {"whole": lambda o=optimizer: _seconds(o), "loop": lambda o=loop: _seconds(o)}
        figures = in_turn(steps, options.repeats)
        with clock.within(fo.Transform, "run"), clock.within(Tape, "start"), clock.within(Tape, "play"):
            outside = [_outside(optimizer, clock) for _ in range(2 + options.repeats)][2:]
        rows.append(
            {
                "model": model,
                "tensors": len(shapes),
                "outside": summary([s / t for s, t in zip(outside, figures["loop"], strict=True)]),
                "whole": summary([s / t for s, t in zip(figures["whole"], figures["loop"], strict=True)]),
            }
        )
        report.say(f"  {models.TITLES[model]}: outside {report.spread(rows[-1]['outside'])}")
    what = "tensors: outside the optimizer"
    targets = [target(f"{row['tensors']} {what}", row["outside"]["median"], LIMIT) for row in rows]
    return {"rows": rows, "targets": targets}


def _parameters(shapes: models.Shapes) -> list[torch.nn.Parameter]:
    params = [torch.nn.Parameter(torch.randn(shape) * 0.02) for shape in shapes]
    for param in params:
        param.grad = torch.randn(param.shape) * 0.01
    return params


def _seconds(optimizer: torch.optim.Optimizer) -> float:
    began = time.perf_counter()
    optimizer.step()
    return time.perf_counter() - began


def _outside(optimizer: torch.optim.Optimizer, clock: Clock) -> float:
    clock.seconds = 0.0
    whole = _seconds(optimizer)
    return whole - clock.seconds


def table(result: dict[str, Any]) -> str:
    """Return the table."""
    lines = [["model", "tensors", "outside the optimizer", "the whole step"]]
    for row in result["rows"]:
        spread = [report.spread(row[name]) for name in ("outside", "whole")]
        lines.append([models.TITLES[row["model"]], str(row["tensors"]), *spread])
    return report.grid(lines)


def chart(result: dict[str, Any], path: Any) -> None:
    """Draw both parts."""
    with report.figure(path, 1, 1, width=4.5, height=2.5) as axes:
        bars = {
            f"{models.TITLES[row['model']]}, {part}": row[name]["median"]
            for row in result["rows"]
            for part, name in (("outside", "outside"), ("whole", "whole"))
        }
        report.bars(axes[0][0], bars)
        axes[0][0].set_xlabel("of a step of torch's for-loop", fontsize=7)
