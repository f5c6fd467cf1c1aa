"""Pictures of a sweep, with matplotlib."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from functopt.plotting import new_axes, smoothed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from functopt.sweep.result import SweepResult

__all__ = ["plot_curves", "plot_heat_map", "plot_metric"]

_COLORS = "viridis"


def _norm(values: Tensor, log: bool) -> Any:
    from matplotlib.colors import LogNorm, Normalize

    return (LogNorm if log else Normalize)(float(values.min()), float(values.max()))


def _scale(result: SweepResult, name: str) -> str:
    return "log" if name in result.log_axes else "linear"


def _colorbar(ax: Axes, norm: Any, label: str, reverse: bool = False) -> None:
    from matplotlib.cm import ScalarMappable

    colors = _COLORS + ("_r" if reverse else "")
    ax.figure.colorbar(ScalarMappable(norm, colors), ax=ax, label=label)


def _alive(result: SweepResult) -> Tensor:
    return result.diverged_at < 0


def plot_curves(result: SweepResult, color: str, smooth: float, ax: Axes | None) -> Axes:
    """Draw every member's loss, coloured by a hyper; a cross marks where a member diverged."""
    ax = new_axes(ax)
    from matplotlib import colormaps

    norm = _norm(result.hypers[color], color in result.log_axes)
    steps = result.loss_steps.numpy()
    losses = smoothed(result.losses.double().numpy(), smooth)
    for member in reversed(result.order):
        paint = colormaps[_COLORS](norm(result.hypers[color][member].item()))
        curve = losses[:, member]
        ax.plot(steps, curve, color=paint, linewidth=1.0, alpha=0.8)
        finite = np.flatnonzero(np.isfinite(curve))
        if result.diverged_at[member] >= 0 and len(finite):
            ax.plot(steps[finite[-1]], curve[finite[-1]], "x", color=paint, markersize=5)
    seen = losses[np.isfinite(losses)]
    if seen.size and seen.min() > 0:
        ax.set_yscale("log")
        # members that blow up would squeeze all others into a line
        ax.set_ylim(seen.min() * 0.8, min(seen.max(), losses[0][np.isfinite(losses[0])].max() * 10) * 1.2)
    ax.set(xlabel="step", ylabel="loss, smoothed" if smooth else "loss", title=f"loss of {len(result)} members")
    _colorbar(ax, norm, color)
    return ax


def plot_metric(result: SweepResult, x: str, color: str | None, metric: str, ax: Axes | None) -> Axes:
    """Draw the final metric of every member against one hyper; crosses on the lower edge are members that diverged."""
    ax = new_axes(ax)
    alive, values = _alive(result), result.metrics[metric]
    good = alive & torch.isfinite(values)
    paint: dict[str, Any] = {"color": "tab:blue"}
    if color is not None:
        norm = _norm(result.hypers[color], color in result.log_axes)
        paint = {"c": result.hypers[color][good].numpy(), "cmap": _COLORS, "norm": norm}
        _colorbar(ax, norm, color)
    ax.scatter(result.hypers[x][good].numpy(), values[good].numpy(), s=24, **paint)
    lost = result.hypers[x][~good].numpy()
    if len(lost):
        ax.plot(
            lost, np.zeros(len(lost)), "x", color="tab:red", label=f"diverged ({len(lost)})",
            transform=ax.get_xaxis_transform(), clip_on=False,
        )  # fmt: skip
        ax.legend()
    best = result.best
    if good[best]:
        ax.scatter(
            result.hypers[x][best].item(),
            values[best].item(),
            s=110,
            facecolors="none",
            edgecolors="black",
            label="best",
        )
    ax.set(xscale=_scale(result, x), xlabel=x, ylabel=metric, title=f"final {metric} of {len(result)} members")
    return ax


def plot_heat_map(result: SweepResult, x: str, y: str, metric: str, ax: Axes | None) -> Axes:
    """Draw the final metric over two hypers: cells where the members form a grid, else points and what lies between."""
    ax = new_axes(ax)
    xs, ys = result.hypers[x], result.hypers[y]
    values = torch.where(_alive(result), result.metrics[metric], torch.nan).double()
    finite = values[torch.isfinite(values)]
    norm = _norm(finite if len(finite) else torch.zeros(1), False)
    columns, rows = xs.unique(), ys.unique()
    reverse = result.mode == "min" and metric == result.metric  # bright is good
    colors = _COLORS + ("_r" if reverse else "")
    if len(columns) * len(rows) <= len(result):
        _cells(ax, columns, rows, xs, ys, values, norm, colors, result.mode)
    else:
        good = torch.isfinite(values)
        ax.set(xscale=_scale(result, x), yscale=_scale(result, y))
        _surface(ax, result, x, y, values, good, norm, colors)
        ax.scatter(xs[good], ys[good], c=values[good], s=70, cmap=colors, norm=norm, edgecolors="white", linewidths=0.5)
        ax.plot(xs[~good], ys[~good], "x", color="tab:red", label="diverged")
        if not good.all():
            ax.legend()
    ax.set(xlabel=x, ylabel=y, title=f"final {metric} of {len(result)} members")
    _colorbar(ax, norm, metric, reverse)
    return ax


def _surface(
    ax: Axes, result: SweepResult, x: str, y: str, values: Tensor, good: Tensor, norm: Any, colors: str
) -> None:
    """Fill the plane between the points, linearly over the triangles that they span on the axes as drawn."""
    from matplotlib.tri import Triangulation

    at = [result.hypers[name][good].double() for name in (x, y)]
    drawn = [values.log() if _scale(result, name) == "log" else values for name, values in zip((x, y), at, strict=True)]
    unit = torch.stack([(d - d.min()) / (d.max() - d.min()).clamp_min(1e-12) for d in drawn])
    spread = torch.linalg.matrix_rank(unit - unit.mean(1, keepdim=True), tol=1e-6)
    if good.sum() < 4 or spread < 2 or norm.vmax <= norm.vmin:
        return  # no triangles, or nothing to tell apart
    points: Any = [values.numpy() for values in at]
    triangles: Any = Triangulation(*unit.numpy()).triangles
    levels: Any = np.linspace(norm.vmin, norm.vmax, 30)
    ax.tricontourf(*points, triangles, values[good].numpy(), levels, cmap=colors, norm=norm, alpha=0.5)  # pyright: ignore[reportCallIssue, reportArgumentType]
    ax.use_sticky_edges = False  # keep the outermost points whole


def _cells(
    ax: Axes, columns: Tensor, rows: Tensor, xs: Tensor, ys: Tensor, values: Tensor, norm: Any, colors: str, mode: str
) -> None:
    """Draw one cell for each pair of values, the best where several members share it; diverged cells stay grey."""
    cells = np.full((len(rows), len(columns)), np.nan)
    for x, y, value in zip(xs, ys, values.tolist(), strict=True):
        i, j = int((rows == y).nonzero()[0]), int((columns == x).nonzero()[0])
        pick = np.fmax if mode == "max" else np.fmin
        cells[i, j] = pick(cells[i, j], value)
    ax.set_facecolor("lightgrey")
    ax.imshow(cells, cmap=colors, norm=norm, origin="lower", aspect="auto")
    ax.set_xticks(range(len(columns)), [f"{v:.3g}" for v in columns.tolist()], rotation=45)
    ax.set_yticks(range(len(rows)), [f"{v:.3g}" for v in rows.tolist()])
