"""Pictures of training, with matplotlib: recorded runs, and schedules before they are run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import optree
import torch

from functopt.plotting import new_axes, smoothed
from functopt.tree import is_schedule, path_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from functopt.training.recorder import Recorder

__all__ = ["compare", "plot_schedule"]

POINTS = 1001  # of a curve drawn of a schedule


def _part(recorder: Recorder, smooth: float, skip_start: int, skip_end: int, who: str) -> tuple[slice, np.ndarray]:
    count = len(recorder)
    if min(skip_start, skip_end) < 0 or skip_start + skip_end >= count:
        raise ValueError(
            f"{who}: nothing is left to draw of {count} steps with skip_start={skip_start} and skip_end={skip_end}"
        )
    part = slice(skip_start, count - skip_end)
    return part, smoothed(recorder.losses, smooth)[part]


def _legend(ax: Axes) -> None:
    """Put the legend where no line is: beside the axes if the figure makes room there, else where there is most."""
    if not ax.get_legend_handles_labels()[1]:
        return
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure: Any = ax.figure
    beside = isinstance(figure.get_layout_engine(), ConstrainedLayoutEngine)
    columns = 1 + (len(ax.get_legend_handles_labels()[1]) - 1) // 20
    if beside:
        ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0, ncols=columns)
    else:
        ax.legend(ncols=columns)


def _loss_label(smooth: float) -> str:
    return "loss, smoothed" if smooth else "loss"


def plot_loss(
    recorder: Recorder,
    ax: Axes | None,
    smooth: float,
    skip_start: int,
    skip_end: int,
    label: str | None,
    validation: bool = True,
) -> Axes:
    """Draw the loss over the steps; see :meth:`Recorder.plot_loss <functopt.training.Recorder.plot_loss>`."""
    part, losses = _part(recorder, smooth, skip_start, skip_end, "plot_loss")
    ax = new_axes(ax)
    steps = recorder.steps[part]
    rows = [row for row in recorder.epochs if "valid_loss" in row and steps[0] <= row["step"] <= steps[-1] + 1]
    rows = rows if validation else []
    train = label if label is not None or not rows else "train"
    (line,) = ax.plot(steps, losses, linewidth=1.2, label=train)
    if rows:
        ax.plot(
            [row["step"] for row in rows],
            [row["valid_loss"] for row in rows],
            "o--",
            color="tab:orange" if label is None else line.get_color(),
            markersize=4,
            linewidth=1.2,
            label="validation" if label is None else f"{label}, validation",
        )
    ax.set(xlabel="step", ylabel=_loss_label(smooth))
    _legend(ax)
    return ax


def plot_against_lr(
    recorder: Recorder, ax: Axes | None, smooth: float, skip_start: int, skip_end: int, label: str | None
) -> Axes:
    """Draw the loss against the learning rate; see :meth:`Recorder.plot <functopt.training.Recorder.plot>`."""
    part, losses = _part(recorder, smooth, skip_start, skip_end, "plot")
    lrs = recorder.lrs[part]
    ax = new_axes(ax)
    ax.plot(lrs, losses, linewidth=1.2, label=label)
    ax.set(xscale="log", xlabel="lr", ylabel=_loss_label(smooth))
    _legend(ax)
    return ax


def plot_metric(recorder: Recorder, name: str, ax: Axes | None, label: str | None) -> Axes:
    """Draw a metric of the epochs; see :meth:`Recorder.plot_metric <functopt.training.Recorder.plot_metric>`."""
    rows = [row for row in recorder.epochs if name in row]
    if not rows:
        names = sorted({own for row in recorder.epochs for own in row} - {"epoch", "step"})
        raise KeyError(f"plot_metric: no {name!r} was recorded after an epoch; there are {names}")
    ax = new_axes(ax)
    ax.plot([row["step"] for row in rows], [row[name] for row in rows], "o-", markersize=4, linewidth=1.2, label=label)
    ax.set(xlabel="step", ylabel=name)
    _legend(ax)
    return ax


def plot_hyper(recorder: Recorder, name: str, ax: Axes | None, label: str | None) -> Axes:
    """Draw a hyper over the steps; see :meth:`Recorder.plot_hyper <functopt.training.Recorder.plot_hyper>`."""
    return _draw_lines(recorder.steps, recorder.lines(name), name, "step", ax, label)


def _draw_lines(
    steps: np.ndarray, lines: Mapping[str, np.ndarray], name: str, xlabel: str, ax: Axes | None, label: str | None
) -> Axes:
    ax = new_axes(ax)
    for which, values in lines.items():
        ax.plot(steps, values, linewidth=1.5, label=", ".join(part for part in (label, which) if part) or None)
    ax.set(xlabel=xlabel, ylabel=name)
    tops = [np.nanmax(values) for values in lines.values() if np.isfinite(values).any()]
    if tops and min(tops) > 0 and max(tops) >= 10 * min(tops):
        ax.set_yscale("log")  # the lines of the first layers would lie on the axis
    _legend(ax)
    return ax


def compare(
    recorders: Mapping[str, Recorder],
    ax: Axes | None = None,
    *,
    smooth: float = 0.98,
    skip_start: int = 0,
    skip_end: int = 0,
    validation: bool = True,
) -> Axes:
    """Draw the losses of several runs over one axis, with their validation losses dashed.

    Args:
        recorders: the runs, by name.
        ax: where to draw; by default a new figure.
        smooth: as in :meth:`Recorder.plot_loss <functopt.training.Recorder.plot_loss>`.
        skip_start: steps of each run to leave out at its start.
        skip_end: steps of each run to leave out at its end.
        validation: draw the validation losses.

    Returns:
        The axes.

    Raises:
        ValueError: there are no runs, or nothing is left to draw of one.
        ImportError: matplotlib is not installed.

    >>> compare({"SGD": first, "Adam": second}).figure.savefig("runs.png")
    """
    if not recorders:
        raise ValueError("compare: there are no recorders")
    ax = new_axes(ax)
    from matplotlib import colormaps

    count = len(recorders)
    if count > 10:  # more than there are colours that one tells apart
        ax.set_prop_cycle(color=[colormaps["viridis"](i / (count - 1)) for i in range(count)])
    for name, recorder in recorders.items():
        plot_loss(recorder, ax, smooth, skip_start, skip_end, name, validation)
    _legend(ax)
    return ax


@overload
def plot_schedule(
    schedule: Mapping[str, Any], ax: Sequence[Axes] | None = None, *, end: float = 1.0, label: str | None = None
) -> list[Axes]: ...


@overload
def plot_schedule(
    schedule: tuple[Any, ...] | list[Any] | slice, ax: Axes | None = None, *, end: float = 1.0, label: str | None = None
) -> Axes: ...


def plot_schedule(schedule: Any, ax: Any = None, *, end: float = 1.0, label: str | None = None) -> Any:
    """Draw a schedule, or the schedules of several hypers one above the other.

    Args:
        schedule: a schedule; a list of one for each group, or a ``slice`` of the first and the last group's; or a dict
            of these by hyper, as :func:`one_cycle` returns it, each of which gets axes of its own.
        ax: where to draw: axes, or for a dict as many as it has entries; by default a new figure. Further schedules may
            be drawn over the same axes.
        end: the last step that is drawn; 1 for schedules by position.
        label: the name in the legend.

    Returns:
        The axes, for a dict a list of them.

    Raises:
        TypeError: it is no schedule.
        ValueError: there are not as many axes as hypers.
        ImportError: matplotlib is not installed.

    >>> plot_schedule(one_cycle(1e-2))[0].figure.savefig("one_cycle.png")
    """
    xlabel = "position" if end == 1 else "step"
    steps = np.linspace(0.0, end, POINTS)
    steps[-1] *= 1 - 1e-6  # at the end itself another cycle may begin
    if not isinstance(schedule, Mapping):
        return _draw_lines(steps, _curves(schedule, steps), "value", xlabel, ax, label)
    panels = _panels(len(schedule)) if ax is None else list(np.ravel(ax))
    if len(panels) != len(schedule):
        raise ValueError(f"plot_schedule: {len(schedule)} hypers need as many axes, got {len(panels)}")
    for panel, (name, own) in zip(panels, schedule.items(), strict=True):
        _draw_lines(steps, _curves(own, steps), name, xlabel if panel is panels[-1] else "", panel, label)
    return panels


def _panels(count: int) -> list[Axes]:
    """Return axes of a new figure, one above the other, over the same steps."""
    first = new_axes()
    figure: Any = first.figure
    first.remove()
    figure.set_size_inches(7, 2.0 + 2.2 * count)
    return list(figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0])


def _curves(value: Any, steps: np.ndarray) -> dict[str, np.ndarray]:
    """Return the values of schedules over the steps, by what tells them apart."""
    if isinstance(value, slice):
        ends = {"first group": value.start, "last group": value.stop}
        return {name: _curve(own, steps) for name, own in ends.items() if own is not None}
    if isinstance(value, (list, tuple)) and not is_schedule(value):
        return {f"group {i}" if len(value) > 1 else "": _curve(own, steps) for i, own in enumerate(value)}
    whole: Any = value
    paths, leaves, _ = optree.tree_flatten_with_path(whole, is_leaf=is_schedule, none_is_leaf=True)
    return {path_name(path) if path else "": _curve(leaf, steps) for path, leaf in zip(paths, leaves, strict=True)}


def _curve(schedule: Any, steps: np.ndarray) -> np.ndarray:
    if isinstance(schedule, (float, int)):
        return np.full(len(steps), float(schedule))
    if not is_schedule(schedule):
        raise TypeError(f"plot_schedule: expected a schedule, got a {type(schedule).__name__}")
    return torch.stack([schedule(step).detach().cpu() for step in torch.from_numpy(steps)]).numpy()
