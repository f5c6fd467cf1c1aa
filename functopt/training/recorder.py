"""What a training run was: the loss and the hypers of every step, and what was measured now and then."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import optree
import torch
from torch import Tensor

from functopt.training import plot
from functopt.training.deferred import brought_over, kept, value_at
from functopt.training.steering import steered, steps_taken
from functopt.tree import is_schedule, path_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from functopt.sweep import SweepResult

__all__ = ["Recorder"]

AT_ONCE = 4096  # steps kept on the device before they are brought over together

Column = tuple[str, int]  # the name of a hyper, and the group


class _Row(NamedTuple):
    step: int
    loss: float | Tensor
    hypers: dict[Column, Any]  # numbers, 0-d tensors, and values that are not known yet


class Recorder:
    """The step, the loss and every hyper in force, step by step; and the metrics of each epoch.

    Call :meth:`record` once a step. The device is never waited for: tensors are copied where they are, and brought over
    together when they are read, or every few thousand steps.

    A hyper is a column for each group. One that is a tree (a value per layer) is recorded leaf by leaf, under the
    names of the hyper and of the leaf's path: ``"lr/body"`` and ``"lr/head.weight"``.

    >>> recorder = Recorder()
    >>> for batch in batches:
    ...     loss = loss_fn(model, batch)
    ...     loss.backward()
    ...     recorder.record(loss, optimizer)
    ...     optimizer.step()
    >>> recorder.plot_loss().figure.savefig("loss.png")

    Attributes:
        epochs: what was measured after each epoch: dicts with ``epoch``, ``step`` (how many steps were taken by then)
            and the values.
        interrupted: whether the run ended before its time; the recorder itself makes no use of it.
    """

    def __init__(self) -> None:
        self.epochs: list[dict[str, Any]] = []
        self.interrupted = False
        self._rows: list[_Row] = []  # what is not brought over yet
        self._last = -1
        self._steps = np.empty(0, np.int64)
        self._losses = np.empty(0)
        self._columns: dict[Column, np.ndarray] = {}

    # Writing

    def record(
        self, loss: Any, hypers: Any = None, *, step: int | None = None, stepped: bool = False, count: Any = None
    ) -> None:
        """Record one step, before it is taken.

        A hyper that is a schedule has its value by the number of steps taken before, which the optimizer counts: to
        record a step after ``optimizer.step()``, say ``stepped=True``.

        Args:
            loss: a number or a 0-d tensor, which is copied: it may be written over later.
            hypers: an optimizer (:class:`StatefulOptimizer <functopt.StatefulOptimizer>` or any of torch's), a learner,
                one mapping of hypers, or a list of one for each group.
            step: the number of the step; by default one more than the last.
            stepped: the optimizer has taken the step already.
            count: where the schedules among the hypers stand, if the optimizer's counter is not found there: with
                mappings, ``tree.get(state, "count")`` of a purely functional loop. By default the number of the step.

        Raises:
            ValueError: the loss is not one number, or the step does not come after the last one.
            TypeError: the loss or a hyper is no number.
        """
        step = self._last + 1 if step is None else int(step)
        if step <= self._last:
            raise ValueError(f"record: step {step} does not come after step {self._last}, which is recorded already")
        groups = _groups(hypers)
        if count is None and (count := steps_taken(hypers)) is not None:
            count = count - 1 if stepped else count
        count = step if count is None else kept("count", count)
        columns: dict[Column, Any] = {}
        for group, values in enumerate(groups):
            for name, value in values.items():
                if isinstance(value, float):
                    columns[name, group] = value
                else:
                    columns |= {(full, group): own for full, own in _series(name, value, count)}
        self._rows.append(_Row(step, kept("the loss", loss), columns))
        self._last = step
        if len(self._rows) >= AT_ONCE:
            self._bring_over()

    def record_metrics(self, epoch: int, values: Mapping[str, Any]) -> None:
        """Record what was measured after an epoch, and after the steps recorded so far.

        Args:
            epoch: its number.
            values: numbers or 0-d tensors by name. ``"valid_loss"`` is drawn beside the losses of the steps.
        """
        row = {name: float(kept(name, value)) for name, value in values.items()}
        self.epochs.append({"epoch": int(epoch), "step": self._last + 1, **row})

    def _bring_over(self) -> None:
        rows = self._rows
        if not rows:
            return
        known = [(column, i, value) for i, row in enumerate(rows) for column, value in row.hypers.items()]
        numbers = brought_over([*(row.loss for row in rows), *(value for _, _, value in known)])
        losses, values = numbers[: len(rows)], numbers[len(rows) :]
        names = dict.fromkeys([*self._columns, *(column for column, _, _ in known)])
        new = {column: np.full(len(rows), np.nan) for column in names}
        for (column, i, _), value in zip(known, values, strict=True):
            new[column][i] = value
        none = np.full(len(self._steps), np.nan)
        columns = {column: np.concatenate([self._columns.get(column, none), own]) for column, own in new.items()}
        steps = np.concatenate([self._steps, np.array([row.step for row in rows], np.int64)])
        losses = np.concatenate([self._losses, losses])
        # all at once, as an interrupt may come at any time
        self._rows, self._steps, self._losses, self._columns = [], steps, losses, columns

    # Reading

    def __len__(self) -> int:
        return len(self._steps) + len(self._rows)

    def __repr__(self) -> str:
        return f"Recorder({len(self)} steps, {len(self.epochs)} epochs)"

    @property
    def steps(self) -> np.ndarray:
        """The number of every recorded step, int64."""
        self._bring_over()
        return self._steps.copy()

    @property
    def losses(self) -> np.ndarray:
        """The losses, float64."""
        self._bring_over()
        return self._losses.copy()

    @property
    def hypers(self) -> dict[str, np.ndarray]:
        """The values of every hyper, float64: ``[steps]``, or ``[steps, groups]`` if there are several groups.

        NaN where there was none.
        """
        self._bring_over()
        groups = 1 + max((group for _, group in self._columns), default=0)
        none = np.full(len(self._steps), np.nan)
        names = dict.fromkeys(name for name, _ in self._columns)
        columns = {
            name: np.stack([self._columns.get((name, group), none) for group in range(groups)], axis=1)
            for name in names
        }
        return columns if groups > 1 else {name: column[:, 0] for name, column in columns.items()}

    @property
    def lrs(self) -> np.ndarray:
        """The learning rates, those of the last group (or the last leaf) if there are several, as in fastai.

        Raises:
            KeyError: none were recorded.
        """
        series = self.lines("lr")
        return list(series.values())[-1]

    def lines(self, name: str) -> dict[str, np.ndarray]:
        """Return the values of one hyper by what tells them apart: ``"group 1"``, or a path; ``""`` if nothing does.

        Raises:
            KeyError: it was not recorded; the message lists those that were.
        """
        self._bring_over()
        found = {}
        groups = {group for _, group in self._columns}
        for (own, group), values in self._columns.items():
            if own == name or own.startswith(name + "/"):
                path = own[len(name) + 1 :]
                which = f"group {group}" if len(groups) > 1 else ""
                found[", ".join(part for part in (which, path) if part)] = values.copy()
        if not found:
            names = sorted({own for own, _ in self._columns})
            raise KeyError(f"Recorder: no hyper {name!r} was recorded; there are {names}")
        return found

    # Keeping

    def table(self) -> str:
        """Return the epochs as text, a line for each."""
        names = self._epoch_names()
        rows = [names, *([_short(row.get(name)) for name in names] for row in self.epochs)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(names))]
        lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
        return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])

    def _epoch_names(self) -> list[str]:
        return list(dict.fromkeys(["epoch", "step", *(name for row in self.epochs for name in row)]))

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write a line for each step with full precision: step, loss and hypers, those of group 1 as ``lr[1]``."""
        hypers = self.hypers
        names, columns = ["step", "loss"], [self._steps, self._losses]
        for name, values in hypers.items():
            several = values.ndim > 1
            names += [f"{name}[{group}]" for group in range(values.shape[1])] if several else [name]
            columns += [*values.T] if several else [values]
        _write_csv(path, names, zip(*(column.tolist() for column in columns), strict=True))

    def epochs_to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write a line for each epoch with full precision: epoch, step and metrics."""
        names = self._epoch_names()
        _write_csv(path, names, ([row.get(name, "") for name in names] for row in self.epochs))

    def state_dict(self) -> dict[str, Any]:
        """Return everything recorded, in tensors, for ``torch.save``; ``torch.load(weights_only=True)`` reads it."""
        self._bring_over()
        return {
            "steps": torch.from_numpy(self._steps.copy()),
            "losses": torch.from_numpy(self._losses.copy()),
            "hypers": [
                [name, group, torch.from_numpy(values.copy())] for (name, group), values in self._columns.items()
            ],
            "epochs": [dict(row) for row in self.epochs],
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take the place of what is recorded here; further steps are recorded after it.

        Raises:
            ValueError: it is not what :meth:`state_dict` returned. Nothing is changed then.
        """
        if {*state_dict} != {"steps", "losses", "hypers", "epochs"}:
            raise ValueError(f"load_state_dict: expected the state of a Recorder, got the entries {sorted(state_dict)}")
        steps, losses = (state_dict[name].cpu().numpy().copy() for name in ("steps", "losses"))
        columns = {(name, group): values.cpu().numpy().copy() for name, group, values in state_dict["hypers"]}
        if any(len(values) != len(steps) for values in (losses, *columns.values())):
            raise ValueError("load_state_dict: there are not as many losses and hypers as steps")
        self._rows, self._steps, self._losses, self._columns = [], steps, losses, columns
        self._last = int(steps[-1]) if len(steps) else -1
        self.epochs = [dict(row) for row in state_dict["epochs"]]

    @classmethod
    def from_sweep(cls, result: SweepResult) -> list[Recorder]:
        """Return a recorder for each member of a sweep, with the steps that it recorded and the hypers swept over.

        A setting of a schedule has its name there (``"lr.init_value"``). A member's losses are NaN from where it
        diverged.
        """
        losses, steps = result.losses.double().cpu().numpy(), result.loss_steps.cpu().numpy().astype(np.int64)
        recorders = []
        for member in range(len(result)):
            recorder = cls()
            recorder._steps, recorder._losses = steps.copy(), losses[:, member].copy()
            recorder._columns = {
                (name, 0): np.full(len(steps), float(value)) for name, value in result.config(member).items()
            }
            recorder._last = int(steps[-1]) if len(steps) else -1
            recorders.append(recorder)
        return recorders

    # Pictures

    def plot_loss(
        self,
        ax: Axes | None = None,
        *,
        smooth: float = 0.98,
        skip_start: int = 0,
        skip_end: int = 0,
        label: str | None = None,
    ) -> Axes:
        """Draw the loss over the steps, with the validation loss of the epochs (``"valid_loss"``) if there is one.

        Args:
            ax: where to draw; by default a new figure.
            smooth: the decay of a debiased moving average, fastai's by default; 0 draws the losses as they are.
            skip_start: leave out so many of the first steps (they count for the average).
            skip_end: leave out so many of the last.
            label: the name of the run in the legend.

        Returns:
            The axes; ``.figure.savefig("loss.png")`` saves the picture.

        Raises:
            ValueError: nothing is left to draw.
            ImportError: matplotlib is not installed.
        """
        return plot.plot_loss(self, ax, smooth, skip_start, skip_end, label)

    def plot(
        self,
        ax: Axes | None = None,
        *,
        smooth: float = 0.98,
        skip_start: int = 0,
        skip_end: int = 0,
        label: str | None = None,
    ) -> Axes:
        """Draw the loss against the learning rate (that of the last group) on a logarithmic axis.

        The arguments are those of :meth:`plot_loss`.

        Raises:
            KeyError: no learning rates were recorded.
            ValueError: nothing is left to draw.
            ImportError: matplotlib is not installed.
        """
        return plot.plot_against_lr(self, ax, smooth, skip_start, skip_end, label)

    def plot_hyper(self, name: str, ax: Axes | None = None, *, label: str | None = None) -> Axes:
        """Draw a hyper over the steps, a line for each group or layer.

        Raises:
            KeyError: it was not recorded.
            ImportError: matplotlib is not installed.
        """
        return plot.plot_hyper(self, name, ax, label)

    def plot_metric(self, name: str, ax: Axes | None = None, *, label: str | None = None) -> Axes:
        """Draw a metric of the epochs (``"accuracy"``, say) over the steps.

        Raises:
            KeyError: it was not recorded.
            ImportError: matplotlib is not installed.
        """
        return plot.plot_metric(self, name, ax, label)


def _groups(hypers: Any) -> Sequence[Mapping[str, Any]]:
    if hypers is None:
        return []
    if isinstance(hypers, Mapping):
        hypers = [hypers]
    elif not (isinstance(hypers, Sequence) and all(isinstance(group, Mapping) for group in hypers)):
        return steered(hypers, "record").hypers
    if any("params" in group for group in hypers):
        raise TypeError("record: give the optimizer itself, not its param_groups")
    return hypers


def _series(name: str, value: Any, count: Any) -> list[tuple[str, Any]]:
    """Return the names and values of a hyper: one, or one for each leaf of a tree."""
    if isinstance(value, (float, int, Tensor, np.generic)) or is_schedule(value):
        return [(name, value_at(name, value, count))]
    paths, leaves, _ = optree.tree_flatten_with_path(value, is_leaf=is_schedule, none_is_leaf=True)
    full = [f"{name}/{path_name(path)}" if path else name for path in paths]
    return [(own, value_at(own, leaf, count)) for own, leaf in zip(full, leaves, strict=True)]


def _short(value: float | None) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.4g}"


def _write_csv(path: str | os.PathLike[str], names: Sequence[str], rows: Any) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows(rows)
