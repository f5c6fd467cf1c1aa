"""Find a learning rate: train a little while it grows, and see where the loss falls and where it explodes."""

from __future__ import annotations

import contextlib
import csv
import math
import os
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from functopt.plotting import Average, new_axes, smoothed
from functopt.training.learner import Trained
from functopt.training.preserved import preserved
from functopt.training.random import generators_of
from functopt.training.suggestions import Suggestions, suggest

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["LRCurve", "endless", "lr_find", "ramp"]

_SKIP_END = 5  # steps that say nothing but that the loss explodes


def lr_find(
    learner: Trained,
    batches: Iterable[Any],
    *,
    min_lr: float = 1e-7,
    max_lr: float = 10.0,
    max_iter: int = 100,
    stop_factor: float | None = 10.0,
    smooth: float = 0.98,
) -> LRCurve:
    """Train with a growing learning rate, one step for each, and put everything back.

    Step ``i`` has ``lr = min_lr·(max_lr/min_lr)^(i/max_iter)``, all groups the same. Everything that
    :func:`preserved` puts back is put back, bit for bit, also after an exception or Ctrl-C: parameters, buffers,
    gradients, optimizer, modes, and random state (that of a data loader's own generator too). Gradients that are there
    at the start do not take part.

    With ``stop_factor=4`` it does what ``lr_find`` of fastai 2.8.12 does; with ``smooth=0`` the raw losses decide, as
    in the notebook of fastai's course. For a loop of one's own there are its two parts, :func:`ramp` and
    :func:`preserved`. Smith, "Cyclical Learning Rates for Training Neural Networks" (2017).

    Args:
        learner: a :class:`Learner` or :class:`PureLearner`.
        batches: a data loader or a list of batches. If there are fewer than ``max_iter``, they start over.
        min_lr: learning rate of the first step.
        max_lr: the one that would be next after the last step.
        max_iter: how many steps.
        stop_factor: stop when the smoothed loss is more than so many times the smallest so far; None never stops.
        smooth: decay of the debiased moving average of the losses.

    Returns:
        The curve, with four suggestions.

    Raises:
        KeyError: the optimizer has no hyper ``lr``.
        ValueError: a number is out of range, there are no batches, or they end and cannot start over.

    >>> curve = lr_find(learner, loader)
    >>> learner.set_hypers(lr=curve.suggestions.valley)
    """
    for hypers in learner.hypers:
        if "lr" not in hypers:
            raise KeyError(
                f"lr_find: the optimizer has no hyper 'lr', only {list(hypers)}; use ramp with your own step"
            )
    with preserved(learner, *generators_of(batches)), contextlib.closing(endless(batches)) as source:
        learner.train()
        for group in getattr(getattr(learner, "optimizer", None), "param_groups", ()):
            for param in group["params"]:
                param.grad = None

        def step(lr: float) -> Tensor:
            learner.set_hypers(lr=lr)
            loss = learner.loss(next(source))
            learner.step(loss)
            return loss

        return ramp(
            step, min_lr=min_lr, max_lr=max_lr, max_iter=max_iter, stop_factor=stop_factor, smooth=smooth
        )  # fmt: skip


def ramp(
    step: Callable[[float], Tensor | float],
    *,
    min_lr: float = 1e-7,
    max_lr: float = 10.0,
    max_iter: int = 100,
    stop_factor: float | None = 10.0,
    smooth: float = 0.98,
    read_every: int | None = None,
) -> LRCurve:
    """Call a step with learning rates that grow by a constant factor, until its loss explodes.

    Nothing is put back afterwards: do it inside of :func:`preserved`.

    Args:
        step: ``lr -> loss``: trains one step, and returns the loss before it, a 0-d tensor or a number.
        min_lr: see :func:`lr_find`, as for all that are not described here.
        max_lr: likewise.
        max_iter: likewise.
        stop_factor: likewise.
        smooth: likewise.
        read_every: after how many steps to read their losses, for which a device has to be waited; by default at each
            step on a CPU and every 10 elsewhere. Up to so many steps too many are then taken; their losses are left
            out, so that the curve is the same.

    Raises:
        ValueError: a number is out of range, or a loss is not 0-d.

    >>> with preserved(model, optimizer):
    ...     curve = ramp(step)
    """
    _check(min_lr, max_lr, max_iter, stop_factor, smooth, read_every)
    lrs = [min_lr * (max_lr / min_lr) ** (i / max_iter) for i in range(max_iter)]
    watch, unread = _Watch(stop_factor, smooth), []
    for lr in lrs:
        loss = step(lr)
        unread.append(loss.detach().clone() if isinstance(loss, Tensor) else loss)
        on_cpu = not isinstance(loss, Tensor) or loss.device.type == "cpu"
        if len(unread) < (read_every or (1 if on_cpu else 10)):
            continue
        if watch.stops_at(_read(unread)):
            break
        unread = []
    else:
        watch.stops_at(_read(unread))
    losses = np.array(watch.losses)
    return LRCurve(np.array(lrs[: len(losses)]), losses, watch.stopped, smooth, max_iter)


def _check(
    min_lr: float, max_lr: float, max_iter: int, stop_factor: float | None, smooth: float, read_every: int | None
) -> None:
    if not 0 < min_lr < max_lr < math.inf:
        raise ValueError(f"lr_find: expected 0 < min_lr < max_lr, got {min_lr!r} and {max_lr!r}")
    if max_iter < 2:
        raise ValueError(f"lr_find: max_iter must be at least 2, got {max_iter}")
    if stop_factor is not None and not stop_factor > 1:
        raise ValueError(f"lr_find: stop_factor must be more than 1, or None, got {stop_factor!r}")
    if not 0 <= smooth < 1:
        raise ValueError(f"lr_find: smooth must be in [0, 1), got {smooth!r}")
    if read_every is not None and read_every < 1:
        raise ValueError(f"ramp: read_every must be at least 1, got {read_every}")


def _read(losses: Sequence[Tensor | float]) -> list[float]:
    """Bring losses over, all at once."""
    for loss in losses:
        if isinstance(loss, Tensor) and loss.ndim:
            raise ValueError(f"lr_find: the loss must be a 0-d tensor, got one of shape {list(loss.shape)}")
    tensors = [loss for loss in losses if isinstance(loss, Tensor)]
    values = iter(torch.stack(tensors).double().tolist() if tensors else [])
    return [next(values) if isinstance(loss, Tensor) else float(loss) for loss in losses]


class _Watch:
    """Looks at the losses in turn, and says when to stop."""

    def __init__(self, stop_factor: float | None, smooth: float) -> None:
        self.factor, self.average = stop_factor, Average(smooth)
        self.losses: list[float] = []
        self.stopped = "end"
        self._best = math.inf

    def stops_at(self, losses: Iterable[float]) -> bool:
        """Take losses up to the one that ends the search, and tell whether there was one."""
        for loss in losses:
            self.losses.append(loss)
            average = self.average.update(loss)
            self._best = min(self._best, average)
            # for a positive loss: average > factor * best; one below zero has to rise by as much
            if self.factor is not None and average > self._best + (self.factor - 1) * abs(self._best):
                self.stopped = "diverged"
                return True
            if not math.isfinite(loss):
                self.stopped = "not finite"
                return True
        return False


def endless(batches: Iterable[Any]) -> Generator[Any]:
    """Yield batches, from the start again when they end.

    Raises:
        ValueError: there are none, or they are an iterator, which cannot start over.
    """
    while True:
        count = 0
        for batch in batches:
            count += 1
            yield batch
        if not count:
            raise ValueError("there are no batches")
        if batches is iter(batches):
            raise ValueError(
                f"the batches ended after {count} and cannot start over; give a data loader, a list, or an iterator "
                "that goes on"
            )


@dataclass(frozen=True, eq=False)
class LRCurve:
    """What :func:`lr_find` found.

    Attributes:
        lrs: the learning rate of each step that was taken.
        losses: the loss of each, as it came, before the step with that rate; float64.
        stopped: why it ended there: ``"end"`` (all steps were taken), ``"diverged"`` (the smoothed loss passed
            ``stop_factor`` times the smallest) or ``"not finite"``.
        smooth: decay of the moving average.
        max_iter: how many steps were planned.
    """

    lrs: np.ndarray
    losses: np.ndarray
    stopped: str
    smooth: float
    max_iter: int

    def __repr__(self) -> str:
        found = ", ".join(f"{name}={_short(value)}" for name, value in self.suggestions._asdict().items())
        span = f"{self.lrs[0]:.3g} to {self.lrs[-1]:.3g}" if len(self.lrs) else "no"
        return f"LRCurve({len(self.lrs)} learning rates, {span}, stopped: {self.stopped}; {found})"

    @property
    def smoothed(self) -> np.ndarray:
        """The debiased moving average of the losses; NaN from the first one that is not finite."""
        return smoothed(self.losses, self.smooth)

    @property
    def trusted(self) -> slice:
        """The part that the suggestions look at, as in fastai.

        Without the first tenth of the steps that were planned, where the average has seen little; and without the last
        five steps, where the loss explodes, or what follows the first NaN.
        """
        end = min(self.max_iter - _SKIP_END, len(self.lrs) - (1 if self.stopped == "not finite" else _SKIP_END))
        return slice(self.max_iter // 10, max(end, 0))

    @property
    def suggestions(self) -> Suggestions:
        """What the four rules suggest, from the smoothed losses; None where a rule has no answer."""
        return suggest(self.lrs[self.trusted], self.smoothed[self.trusted])

    def plot(
        self, ax: Axes | None = None, *, suggestions: bool = True, raw: bool = True, label: str | None = None
    ) -> Axes:
        """Draw the smoothed loss against the learning rate, with the suggestions as points on it.

        The vertical axis goes a little above where the loss was before it fell; what explodes leaves the picture. In
        axes with lines in them already it goes further where these need it.

        Args:
            ax: where to draw; by default a new figure.
            suggestions: mark them.
            raw: draw the losses as they came, too, thin.
            label: name of the curve in the legend.

        Returns:
            The axes; ``.figure.savefig("lr_find.png")`` saves the picture.

        Raises:
            ImportError: matplotlib is not installed.
        """
        ax = new_axes(ax)
        before = ax.get_ylim() if ax.lines else None
        curve, bottom, top = self.smoothed, 0.0, math.inf
        if np.isfinite(curve).any():
            bottom, top = self._limits(self.losses if raw else curve)
        (line,) = ax.plot(self.lrs, curve, label=label or "smoothed loss", zorder=2)
        if raw and self.smooth:
            ax.plot(self.lrs, self.losses, color=line.get_color(), alpha=0.3, linewidth=0.8, label="loss", zorder=1)
        if suggestions:
            markers = {"valley": "o", "minimum": "s", "steep": "^", "slide": "D"}
            for i, (name, lr) in enumerate(self.suggestions._asdict().items()):
                if lr is None:
                    continue
                height = np.interp(math.log(lr), np.log(self.lrs), curve)
                height = min(float(height), top)  # one on what explodes, at the edge
                ax.plot(
                    lr, height, markers[name], color=f"C{i + 1}", markeredgecolor="black", zorder=3,
                    label=f"{name} {lr:.1e}", clip_on=height < top,
                )  # fmt: skip
        ax.set(xscale="log", xlabel="learning rate", ylabel="loss", title="learning rate finder")
        if math.isfinite(top):
            ax.set_ylim(min(bottom, *before or (bottom,)), max(top, *before or (top,)))
        ax.legend()
        return ax

    def _limits(self, drawn: np.ndarray) -> tuple[float, float]:
        """Return a range that shows where the curve falls, though it explodes at its end."""
        curve, begin = self.smoothed, self.trusted.start
        if not np.isfinite(curve[begin:]).any():
            begin = 0
        lowest = begin + int(np.nanargmin(curve[begin:]))
        bottom, before = drawn[: lowest + 1].min(), curve[: lowest + 1].max()
        # of one that only rises, the lower half
        top = before if lowest > begin else max(before, float(np.nanmedian(curve)))
        span = (top - bottom) or abs(top) or 1.0
        return bottom - 0.1 * span, top + 0.25 * span

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write a line for each step: its number, learning rate, loss and smoothed loss, with full precision."""
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["step", "lr", "loss", "smoothed"])
            columns = (self.lrs.tolist(), self.losses.tolist(), self.smoothed.tolist())
            writer.writerows([step, *row] for step, row in enumerate(zip(*columns, strict=True)))


def _short(value: float | None) -> str:
    return "None" if value is None else f"{value:.3g}"
