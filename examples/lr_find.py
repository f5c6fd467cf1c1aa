"""Two ways to find a learning rate, on the same network, batches and optimizer, in one picture.

The *finder* trains once, while the learning rate grows from step to step, and looks at where the loss falls and where
it explodes. The *sweep* trains with each of 32 learning rates from the same start, all at once, and looks at how far
each has come. The rates that the finder suggests are among them, so what they are worth is measured. What the two
disagree about, and why, is then read off the numbers.

    python examples/lr_find.py
    python examples/lr_find.py --steps 30 200 --momentum 0
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import digits
import numpy as np
import torch
from torch.nn.functional import cross_entropy

import functopt as fo
from functopt.training import Learner, LRCurve, LRSweep, Suggestions, lr_find, lr_sweep, pure_loss

LOW, HIGH = 1e-4, 10.0


class Found(NamedTuple):
    """What came out."""

    curve: LRCurve
    slow: LRCurve  # the same rates, passed through half as fast
    sweep: LRSweep
    few: int  # steps after which the sweep is looked at first
    report: str


def main(arguments: list[str] | None = None) -> Found:
    """Search both ways, print how they compare, and save the picture."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--rates", type=int, default=32, help="how many learning rates the sweep tries")
    parser.add_argument("--steps", type=int, nargs=2, default=[20, 100], help="after how many steps it looks at them")
    parser.add_argument("--max-iter", type=int, default=100, help="steps of the finder")
    parser.add_argument("--momentum", type=float, default=0.9)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true", help="compile the sweep, which pays when it takes longer")
    parser.add_argument("--out", type=Path, default=Path("lr_find.png"), help="where the picture goes")
    parser.add_argument("--threads", type=int, default=1, help="the network is too small for many to help")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    few, many = sorted(options.steps)

    data = digits.load(options.seed)
    batches = [*digits.batches(data.train, options.batch_size, 1, options.seed)]
    model = digits.conv_net(options.seed)
    tx = fo.sgd(0.1, momentum=options.momentum)

    began = time.perf_counter()
    learner = Learner(model, fo.StatefulOptimizer(model.parameters(), tx), cross_entropy)
    curve, slow = (
        lr_find(learner, batches, min_lr=LOW, max_lr=HIGH, max_iter=count)
        for count in (options.max_iter, 2 * options.max_iter)
    )
    between = time.perf_counter()
    suggested = [lr for lr in curve.suggestions if lr is not None]
    rates = np.array([*np.geomspace(LOW, HIGH, options.rates), *suggested])
    sweep = lr_sweep(*pure_loss(model, cross_entropy), tx, batches, rates, steps=many, compile=options.compile)
    print(f"finder: twice, {between - began:.1f} s; {curve}")
    print(f"sweep: {len(sweep.lrs)} rates, {many} steps each, {time.perf_counter() - between:.1f} s; {sweep}\n")

    report = "\n".join([*worth(curve, sweep, few), "", *disagreements(curve, slow, sweep, few)])
    print(report)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    draw(curve, sweep, few, options.out)
    curve.to_csv(options.out.with_suffix(".csv"))
    print(f"\nthe picture is {options.out}, the finder's curve {options.out.with_suffix('.csv')}")
    return Found(curve, slow, sweep, few, report)


# What the numbers say


def worth(curve: LRCurve, sweep: LRSweep, few: int) -> list[str]:
    """Return a table: the loss that each rate has after training with it from the start."""
    many = len(sweep)
    rows = {f"suggested: {name}": lr for name, lr in curve.suggestions._asdict().items()}
    for steps in (few, many):
        rows[f"best after {steps} steps"] = sweep[:steps].best_lr
        rows[f"largest stable, {steps} steps"] = sweep[:steps].largest_stable()
    lines = [f"{'learning rate':<32}{'':>9}  loss after {few:>3} steps  after {many:>3}"]
    for name, lr in rows.items():
        if lr is None:
            lines.append(f"{name:<32}{'none':>9}")
            continue
        losses = [loss_at(sweep[:steps], lr) for steps in (few, many)]
        lines.append(f"{name:<32}{lr:>9.2g}  {losses[0]:>20.4g}  {losses[1]:>9.4g}")
    return lines


def disagreements(curve: LRCurve, slow: LRCurve, sweep: LRSweep, few: int) -> list[str]:
    """Say where finder and sweep disagree, and what in the data explains it."""
    many, first = len(sweep), sweep.losses[0, 0]
    found = {name: lr for name, lr in curve.suggestions._asdict().items() if lr is not None}
    best, best_few = sweep.best_lr, sweep[:few].best_lr
    if best is None or best_few is None or not found:
        return ["Nothing to compare: no rate trained, or the finder's loss never fell."]
    near = [name for name, lr in found.items() if max(lr / best, best / lr) <= 2]
    far = [f"; {name} is {_compared(lr, best)}" for name, lr in found.items() if name not in near]
    close = sweep.lrs[sweep.final <= 1.5 * np.nanmin(sweep.final)]
    lines = [
        f"Within a factor of 2 of the best rate after {many} steps, {best:.2g}: {', '.join(near) or 'no suggestion'}"
        + "".join(far)
        + f". The suggestions span a factor of {max(found.values()) / min(found.values()):.1f}."
        + f" Losses within a factor of 1.5 of the lowest come from {len(close)} rates, {close.min():.2g} to "
        + f"{close.max():.2g}: one run of each hardly tells these apart."
    ]

    arrives = int(np.searchsorted(curve.lrs, best))
    if 0 < arrives < min(len(curve.lrs), many):
        now = replace(curve, smooth=0.8).smoothed[arrives]
        fresh = sweep[:arrives].smoothed[-1][_at(sweep, best)]
        lines.append(
            f"- One path. The finder comes to {best:.2g} after {arrives} steps, with a loss of {now:.2g} (average of "
            f"the last few) and no longer {first:.3g}: the smaller rates have trained its weights. So many steps with "
            f"{best:.2g} alone give {fresh:.2g}. What it suggests depends on its speed; with twice the steps:"
            f" {_moves(curve, slow)}."
        )
    explodes, stable = explosion(curve), sweep.largest_stable()
    if explodes is not None and stable is not None:
        lines.append(
            "- One step for each rate. Once it has fallen, the finder's loss stays below the first one up to "
            f"{explodes:.2g}. A run of {many} steps is stable up to {stable:.2g}: what one step survives is "
            f"{_compared(explodes, stable)}."
        )

    raw, short = (replace(curve, smooth=decay) for decay in (0.0, 0.8))
    low, low_raw = (10 * (each.suggestions.minimum or np.nan) for each in (curve, raw))
    lines.append(
        f"- Smoothing. The average with decay {curve.smooth:g} is lowest at {low:.2g}, the loss itself at "
        f"{low_raw:.2g}: {'it lags' if low > low_raw else 'here it does not lag'}. "
        f"With decay 0.8: {_moves(curve, short)}."
    )

    gains = first - sweep.final
    blind = sweep.lrs[(gains < 0.05 * np.nanmax(gains)) & (sweep.lrs < best)]
    slower = f"Of the {int((sweep.lrs < best).sum())} rates below the best, {len(blind)} have come less than 5 % as far"
    lines.append(
        f"- How long is trained. Best after {few} steps is {best_few:.2g}, after {many} steps {best:.2g}: the former "
        f"is {_compared(best_few, best)}. {slower} in {many} steps: of these the sweep says only that they are slow."
    )
    return lines


def explosion(curve: LRCurve) -> float | None:
    """Return the rate at which the loss itself, once it has fallen by a tenth, first passes the first one again."""
    fallen = np.flatnonzero(curve.losses < 0.9 * curve.losses[0])
    if not len(fallen):
        return None
    above = np.flatnonzero(~(curve.losses[fallen[0] :] <= curve.losses[0]))
    # the loss of a step is that before it: it was the step before that which broke the network
    return float(curve.lrs[fallen[0] + above[0] - 1]) if len(above) else None


def loss_at(sweep: LRSweep, lr: float) -> float:
    """Return the final loss of one of the rates."""
    return float(sweep.final[_at(sweep, lr)])


def _at(sweep: LRSweep, lr: float) -> int:
    return int(np.flatnonzero(sweep.lrs == lr)[0])


def _compared(one: float, other: float) -> str:
    if max(one / other, other / one) < 1.01:
        return "the same"
    return f"{one / other:.1f} times larger" if one > other else f"{other / one:.1f} times smaller"


def _moves(before: LRCurve, after: LRCurve) -> str:
    """Say how the suggestions move from one curve to another."""
    text = lambda lr: "none" if lr is None else f"{lr:.2g}"
    pairs = zip(Suggestions._fields, before.suggestions, after.suggestions, strict=True)
    return ", ".join(f"{name} {text(old)} -> {text(new)}" for name, old, new in pairs)


# The picture


def draw(curve: LRCurve, sweep: LRSweep, few: int, path: Path) -> None:
    """Draw the finder's curve above the sweep's final losses, over the same rates."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 8.5), layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True)
    curve.plot(above)
    above.set(title="finder: one run, a step with each rate", xlabel="")
    below.set_prop_cycle(color=["black", "grey"])
    sweep.plot(below)
    sweep[:few].plot(below, marks=False)
    best = sweep[:few].best_lr
    if best is not None:
        below.plot(
            best, loss_at(sweep[:few], best), "o", markersize=10, markerfacecolor="none", color="grey",
            label=f"best {best:.1e}",
        )  # fmt: skip
    points = [line for line in above.get_lines() if str(line.get_label()).startswith(Suggestions._fields)]
    for line in points:
        lr = float(np.asarray(line.get_xdata())[0])
        for ax in (above, below):
            ax.axvline(lr, color=line.get_color(), linewidth=0.8, alpha=0.5, zorder=0)
        below.plot(lr, loss_at(sweep, lr), line.get_marker(), color=line.get_color(), markeredgecolor="black", zorder=3)
    below.set(title="sweep: a run from the start with each rate")
    below.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
