"""Find a learning rate by training with many of them from the same start, all in one batched program."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from functopt.base import Transform
from functopt.plotting import new_axes, smoothed
from functopt.sweep import Batches, SweepResult, sweep
from functopt.sweep.plot import plot_curves
from functopt.training.lr_find import endless
from functopt.training.preserved import preserved
from functopt.training.random import generators_of
from functopt.tree import Tree

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["LRSweep", "lr_sweep", "pure_loss"]


def lr_sweep(
    loss_fn: Callable[[Tree, Any], Tensor],
    params: Tree,
    tx: Transform,
    batches: Batches | Iterable[Any],
    lrs: Sequence[float] | np.ndarray | Tensor | None = None,
    *,
    steps: int = 100,
    smooth: float = 0.9,
    compile: bool = True,
    chunk: int | None = None,
    threads: int | None = None,
    randomness: str = "error",
    progress: bool | None = None,
) -> LRSweep:
    """Train with each of many learning rates, from the same start, on the same batches.

    One vmapped run of :func:`sweep <functopt.sweep>`: each curve is what training with that rate alone would give. The
    parameters given stay as they are, and the random state is put back.

    Args:
        loss_fn: ``(params, batch) -> loss``, a 0-d tensor; :func:`pure_loss` makes one of a module.
        params: where all start.
        tx: the optimizer. Its other hypers keep their defaults: ``tx.with_hypers(momentum=0.9)`` sets them.
        batches: a data loader, a list, or :class:`Batches <functopt.Batches>`. If there are fewer than ``steps``,
            they start over.
        lrs: the learning rates, all positive; by default 32 from 1e-5 to 1, by a constant factor.
        steps: how many, for each rate.
        smooth: decay of the debiased moving average of the losses.
        compile: as in ``sweep``, like all that follow.
        chunk: how many rates to train at a time.
        threads: how many threads to compute with.
        randomness: how random operations in the loss behave across the rates.
        progress: show how it goes.

    Raises:
        KeyError: the optimizer has no hyper ``lr``.
        ValueError: a number is out of range, there are no batches, or they end and cannot start over.

    >>> found = lr_sweep(loss_fn, params, fo.adamw(), loader, np.geomspace(1e-5, 1, 32), steps=100)
    >>> found.best_lr, found.largest_stable()
    """
    rates = _rates(np.geomspace(1e-5, 1.0, 32) if lrs is None else lrs)
    if steps < 1:
        raise ValueError(f"lr_sweep: steps must be at least 1, got {steps}")
    if not 0 <= smooth < 1:
        raise ValueError(f"lr_sweep: smooth must be in [0, 1), got {smooth!r}")
    if "lr" not in tx.hypers:
        raise KeyError(f"lr_sweep: the optimizer has no hyper 'lr', only {sorted(tx.hypers)}")
    with preserved(*generators_of(batches)), contextlib.ExitStack() as stack:
        if isinstance(batches, Batches):
            batches = dataclasses.replace(batches, steps=steps, epochs=None)
        else:
            source = stack.enter_context(contextlib.closing(endless(batches)))
            batches = itertools.islice(source, steps)
        result = sweep(
            loss_fn, params, tx, {"lr": rates.tolist()}, batches, steps=steps, compile=compile, chunk=chunk,
            threads=threads, randomness=randomness, progress=progress,
        )  # fmt: skip
    return LRSweep(rates, result.losses.double().numpy(), result.diverged_at.numpy(), smooth, result)


def _rates(lrs: Any) -> np.ndarray:
    rates = np.unique(np.asarray(lrs.tolist() if isinstance(lrs, Tensor) else lrs, dtype=np.float64))
    if not rates.size or not (np.isfinite(rates) & (rates > 0)).all():
        raise ValueError(f"lr_sweep: lrs must be positive and finite numbers, got {lrs!r}")
    return rates


def pure_loss(
    model: nn.Module, loss_fn: Callable[[Any, Any], Tensor]
) -> tuple[Callable[[dict[str, Tensor], Any], Tensor], dict[str, Tensor]]:
    """Return the loss of a module as a function of its parameters, and these.

    The module stays as it is. Buffers are those it has now: what a batch writes into them is forgotten, which does not
    matter to a network in training. Parameters that do not require gradients do not train.

    Args:
        model: called with a batch's inputs, in the mode that it is in.
        loss_fn: ``(predictions, target) -> loss``.

    Returns:
        ``(loss, params)`` with ``loss(params, batch)``, where a batch is a tuple of the inputs and the target.

    Raises:
        ValueError: nothing in the module trains.

    >>> lr_sweep(*pure_loss(model, F.cross_entropy), fo.adamw(), loader)
    """
    params = {name: param.detach().clone() for name, param in model.named_parameters() if param.requires_grad}
    if not params:
        raise ValueError("pure_loss: the module has no parameters that require gradients")
    fixed = {name: param.detach().clone() for name, param in model.named_parameters() if not param.requires_grad}
    buffers = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}

    def loss(params: dict[str, Tensor], batch: Any) -> Tensor:
        *inputs, target = batch
        # normalisation writes into them: each member of a sweep needs its own, so they are mixed with its parameters
        zero = next(iter(params.values())).new_zeros(())
        own = {name: buffer + zero.to(buffer.dtype) for name, buffer in buffers.items()}
        return loss_fn(functional_call(model, {**params, **fixed, **own}, tuple(inputs)), target)

    return loss, params


@dataclass(frozen=True, eq=False)
class LRSweep:
    """What :func:`lr_sweep` found. ``found[:20]`` is what it would have found with 20 steps.

    Attributes:
        lrs: the learning rates, ascending.
        losses: the loss before each step, [steps, rates]; NaN after a rate diverged.
        diverged_at: the step at which the loss or the parameters of each rate stopped being finite; -1 if never.
        smooth: decay of the moving average.
        result: the sweep itself, with the trained parameters.
    """

    lrs: np.ndarray
    losses: np.ndarray
    diverged_at: np.ndarray
    smooth: float
    result: SweepResult = field(repr=False)

    def __len__(self) -> int:
        return len(self.losses)

    def __getitem__(self, steps: slice) -> LRSweep:
        """Return the same with the first steps only, ``[:20]``."""
        if not isinstance(steps, slice) or steps.start not in (None, 0) or steps.step not in (None, 1):
            raise TypeError("LRSweep: take the first steps, as in found[:20]")
        losses = self.losses[steps]
        if not len(losses):
            raise ValueError(f"LRSweep: no steps are left of {len(self)}")
        stop = np.where(self.diverged_at < len(losses), self.diverged_at, -1)
        return dataclasses.replace(self, losses=losses, diverged_at=stop)

    def __repr__(self) -> str:
        best, stable = ("none" if lr is None else f"{lr:.3g}" for lr in (self.best_lr, self.largest_stable()))
        return (
            f"LRSweep({len(self.lrs)} learning rates, {self.lrs[0]:.3g} to {self.lrs[-1]:.3g}, {len(self)} steps; "
            f"best: {best}, largest stable: {stable})"
        )

    @property
    def smoothed(self) -> np.ndarray:
        """The debiased moving averages of the losses; NaN from where a rate diverged."""
        return smoothed(self.losses, self.smooth)

    @property
    def final(self) -> np.ndarray:
        """The smoothed loss of each rate at the last step; NaN if it diverged."""
        return np.where(self.diverged_at < 0, self.smoothed[-1], np.nan)

    @property
    def best_lr(self) -> float | None:
        """The rate with the lowest final loss; None if all diverged."""
        final = self.final
        return float(self.lrs[np.nanargmin(final)]) if np.isfinite(final).any() else None

    def largest_stable(self, gain: float = 0.1) -> float | None:
        """Return the largest rate that learned: it did not diverge, and gained something.

        That a loss is finite says little: a network that a large step has destroyed has one too, that of guessing.

        Args:
            gain: how much the final loss has to be below the first one, as a fraction of how much the best rate's is.

        Returns:
            The rate, or None if none ended below the first loss.
        """
        first, final = self.losses[0][np.isfinite(self.losses[0])], self.final
        if not len(first) or not np.isfinite(final).any() or np.nanmin(final) >= first[0]:
            return None
        # all start alike, so each has the same first loss
        enough = final <= first[0] - gain * (first[0] - np.nanmin(final))
        return float(self.lrs[enough].max())

    def plot(self, ax: Axes | None = None, *, label: str | None = None, marks: bool = True) -> Axes:
        """Draw the final loss against the learning rate, both axes logarithmic where that can be.

        A circle marks the best rate, a bar the largest stable one, and crosses on the upper edge those that diverged.

        Args:
            ax: where to draw; by default a new figure.
            label: name of the line in the legend; by default how many steps it is.
            marks: draw the marks.

        Raises:
            ImportError: matplotlib is not installed.
        """
        ax = new_axes(ax)
        before = ax.get_ylim() if ax.lines else None
        final, best, stable = self.final, self.best_lr, self.largest_stable()
        (line,) = ax.plot(self.lrs, final, ".-", label=label or f"loss after {len(self)} steps")
        color = line.get_color()
        if marks and best is not None:
            at = self.lrs == best
            ax.plot(
                best, final[at][0], "o", markersize=10, markerfacecolor="none", color=color, label=f"best {best:.1e}"
            )
        if marks and stable is not None:
            ax.axvline(stable, color=color, linestyle=":", linewidth=1, label=f"largest stable {stable:.1e}")
        lost = self.lrs[self.diverged_at >= 0]
        if marks and len(lost):
            ax.plot(
                lost, np.ones(len(lost)), "x", color="tab:red", label=f"diverged ({len(lost)})",
                transform=ax.get_xaxis_transform(), clip_on=False,
            )  # fmt: skip
        ax.set(
            xscale="log", xlabel="learning rate", ylabel="loss, smoothed", title="learning rates, each from the start"
        )
        self._show_what_learns(ax, before)
        ax.legend()
        return ax

    def _show_what_learns(self, ax: Axes, before: tuple[float, float] | None) -> None:
        """Keep what explodes from squeezing the rest into a line, but show what was there before."""
        seen = self.final[np.isfinite(self.final)]
        if not len(seen):
            return
        lowest, first = seen.min(), self.losses[0, 0]
        low, high = lowest - 0.1 * abs(first - lowest), max(first, lowest) + 0.35 * abs(first - lowest)
        if lowest > 0:
            ax.set_yscale("log")
            low, high = lowest * 0.8, max(first, lowest) * 1.8
        if before is not None:
            low, high = min(low, before[0]), max(high, before[1])
        ax.set_ylim(low, high)

    def plot_curves(self, ax: Axes | None = None) -> Axes:
        """Draw the smoothed loss of each rate over the steps, coloured by the rate.

        Args:
            ax: where to draw; by default a new figure.

        Raises:
            ImportError: matplotlib is not installed.
        """
        part = dataclasses.replace(
            self.result,
            losses=torch.from_numpy(self.losses),
            loss_steps=torch.arange(len(self)),
            diverged_at=torch.from_numpy(self.diverged_at),
            log_axes=frozenset({"lr"}),
        )
        ax = plot_curves(part, "lr", self.smooth, ax)
        ax.set_title(f"{len(self.lrs)} learning rates, each from the start")
        return ax
