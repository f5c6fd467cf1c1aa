"""What a sweep returns."""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from functopt import tree
from functopt.sweep.plot import plot_curves, plot_heat_map, plot_metric
from functopt.sweep.tune import Plan
from functopt.tree import Tree

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["SweepResult"]


@dataclass(frozen=True, eq=False)
class SweepResult:
    """The members of a sweep after training.

    Attributes:
        hypers: what was swept: for each name the values of all members. A schedule's setting is called
            ``"lr.init_value"``.
        losses: the recorded losses, one row for each recorded step and one column for each member; NaN from the step
            after a member diverged.
        loss_steps: the step of each row, counted from 0.
        diverged_at: the step, counted from 0, at which a member's loss or parameters stopped being finite; -1 if never.
        metrics: the metrics of ``eval_fn`` after training, by name; without one, ``loss``: the mean of the last tenth
            of the recorded losses.
        best_metrics: each member's metrics at the evaluation where the ranking metric was best.
        metric: the metric that ranks the members.
        mode: ``"max"`` or ``"min"``.
        steps: how many were taken.
        seconds: how long it all took, compilation and evaluation included.
        first_step_seconds: how long the first block of steps took, most of it compilation.
        memory: the bytes that the members need while they train: parameters and state twice, and what the gradients
            take at most, measured for one member uncompiled.
        plan: how it was run: members at a time, threads, and the bytes that the columns of a convolution may take for
            it to be a matrix product (0: none is).
        log_axes: the hypers that are shown on a logarithmic axis.
    """

    hypers: dict[str, Tensor]
    losses: Tensor
    loss_steps: Tensor
    diverged_at: Tensor
    metrics: dict[str, Tensor]
    best_metrics: dict[str, Tensor]
    metric: str
    mode: str
    steps: int
    seconds: float
    first_step_seconds: float
    memory: int
    plan: Plan
    log_axes: frozenset[str]
    all_params: Tree = field(repr=False)
    all_states: Tree = field(repr=False)

    def __len__(self) -> int:
        return len(self.diverged_at)

    def __repr__(self) -> str:
        lost = int((self.diverged_at >= 0).sum())
        value = self.metrics[self.metric][self.best]
        return (
            f"SweepResult({len(self)} members over {list(self.hypers)}, {self.steps} steps, {lost} diverged; best is "
            f"member {self.best} with {self.metric} {value:.5g})"
        )

    @property
    def order(self) -> list[int]:
        """The members from best to worst; those that diverged come last, those that did so first at the very end."""
        score = self.metrics[self.metric] * (1 if self.mode == "min" else -1)
        score = torch.where(torch.isfinite(score), score, torch.inf)
        by_score = score.argsort(stable=True)
        stop = self.diverged_at[by_score]
        lasted = torch.where(stop < 0, self.steps, stop)
        return by_score[lasted.argsort(stable=True, descending=True)].tolist()

    @property
    def best(self) -> int:
        """The best member."""
        return self.order[0]

    def params(self, member: int) -> Tree:
        """Return a copy of one member's final parameters; if it diverged, its last finite ones."""
        return tree.map(torch.clone, tree.member(self.all_params, self._check(member)))

    def state(self, member: int) -> Tree:
        """Return a copy of one member's optimizer state."""
        return tree.map(torch.clone, tree.member(self.all_states, self._check(member)))

    def config(self, member: int) -> dict[str, float]:
        """Return one member's hypers as plain numbers."""
        return {name: values[self._check(member)].item() for name, values in self.hypers.items()}

    def _check(self, member: int) -> int:
        if not -len(self) <= member < len(self):
            raise IndexError(f"there is no member {member}: the sweep has {len(self)}")
        return member

    def _rows(self) -> tuple[list[str], list[list[Any]]]:
        names = [*self.hypers, *self.metrics]
        names += [f"best {name}" for name in self.best_metrics if not self._same_as_final(name)]
        rows = []
        for member in self.order:
            row: list[Any] = [member, *self.config(member).values()]
            row += [values[member].item() for values in self.metrics.values()]
            row += [
                values[member].item() for name, values in self.best_metrics.items() if not self._same_as_final(name)
            ]
            stop = int(self.diverged_at[member])
            rows.append([*row, stop if stop >= 0 else None])
        return ["member", *names, "diverged at"], rows

    def _same_as_final(self, name: str) -> bool:
        return torch.equal(self.metrics[name].nan_to_num(), self.best_metrics[name].nan_to_num())

    def table(self, top: int | None = 10) -> str:
        """Return the leaderboard, best first, as text: drawn by rich on a terminal, plain elsewhere.

        Args:
            top: how many rows; None for all.
        """
        names, rows = self._rows()
        if all(row[-1] is None for row in rows):
            names, rows = names[:-1], [row[:-1] for row in rows]
        shown = [[_short(value) for value in row] for row in rows[:top]]
        hidden = len(rows) - len(shown)
        footer = f"... and {hidden} more" if hidden else ""
        if sys.stdout.isatty():
            try:
                return _rich_table(names, shown, footer)
            except ImportError:
                pass
        return _plain_table(names, shown, footer)

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write a line for each member, best first, with full precision and the step at which it diverged, if any."""
        names, rows = self._rows()
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow([name.replace(" ", "_") for name in names])
            writer.writerows([["" if value is None else value for value in row] for row in rows])

    def plot(
        self,
        x: str | None = None,
        y: str | None = None,
        *,
        color: str | None = None,
        metric: str | None = None,
        smooth: float = 0.9,
        ax: Axes | None = None,
    ) -> Axes:
        """Draw the sweep with matplotlib.

        ``plot()`` draws the loss curves, coloured by a hyper. ``plot(x="lr")`` draws the final metric against one
        hyper, and ``plot(x="lr", y="weight_decay")`` a heat map of it over two. Axes are logarithmic where the space
        is.

        Args:
            x: the hyper along the horizontal axis.
            y: the hyper along the vertical axis of a heat map.
            color: the hyper that colours curves or points; for curves the first one of the space.
            metric: which metric; by default the one that ranks the members.
            smooth: the decay of a moving average over the recorded losses; 0 draws them as they are.
            ax: where to draw; by default a new figure.

        Returns:
            The axes; ``.figure.savefig("sweep.png")`` saves the picture.

        Raises:
            KeyError: no such hyper or metric.
            ImportError: matplotlib is not installed.
        """
        for name in (x, y, color):
            if name is not None and name not in self.hypers:
                raise KeyError(f"plot: no hyper {name!r} was swept; there are {list(self.hypers)}")
        if metric is not None and metric not in self.metrics:
            raise KeyError(f"plot: there is no metric {metric!r}; there are {list(self.metrics)}")
        if y is not None and x is None:
            raise ValueError("plot: y needs an x")
        metric = metric or self.metric
        if x is None:
            return plot_curves(self, color or next(iter(self.hypers)), smooth, ax)
        if y is None:
            return plot_metric(self, x, color, metric, ax)
        return plot_heat_map(self, x, y, metric, ax)


def _short(value: Any) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.4g}"


def _plain_table(names: Sequence[str], rows: Sequence[Sequence[str]], footer: str) -> str:
    widths = [max(len(row[i]) for row in (names, *rows)) for i in range(len(names))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in (names, *rows)]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join([*lines, footer] if footer else lines)


def _rich_table(names: Sequence[str], rows: Sequence[Sequence[str]], footer: str) -> str:
    from rich.console import Console
    from rich.table import Table

    table = Table(caption=footer or None, caption_justify="left")
    for name in names:
        table.add_column(name, justify="right")
    for i, row in enumerate(rows):
        table.add_row(*row, style="bold" if i == 0 else None)
    console = Console()
    with console.capture() as capture:
        console.print(table)
    return capture.get().rstrip("\n")
