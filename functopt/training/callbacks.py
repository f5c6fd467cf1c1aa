"""What may happen at the moments of a run beside training."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from functopt.training.run import Run

__all__ = ["MOMENTS", "Callback", "CancelBatch", "CancelEpoch", "CancelFit", "in_order"]

MOMENTS = (
    "begin_fit", "begin_epoch", "begin_batch", "after_loss", "after_step", "after_batch", "begin_validate",
    "after_epoch", "after_fit",
)  # fmt: skip
"""The moments of a run, as they come."""


class CancelBatch(Exception):
    """Raised by a callback before ``after_batch``: leave out the rest of this batch, its step too if not yet taken."""


class CancelEpoch(Exception):
    """Raised by a callback: leave out the rest of this epoch, its validation too."""


class CancelFit(Exception):
    """Raised by a callback: end the run here."""


class Callback:
    """Does nothing at any moment: derive from it, and define the moments that matter.

    Every method is given the :class:`Run <functopt.training.Run>`. What it raises ends the run, except for
    :class:`CancelBatch`, :class:`CancelEpoch` and :class:`CancelFit`, after which the loop goes on with
    ``after_batch``, ``after_epoch`` or ``after_fit``.

    A callback with methods ``state_dict`` and ``load_state_dict`` is saved in checkpoints of the run.

    >>> class StopWhenGood(Callback):
    ...     def after_epoch(self, run):
    ...         if run.row and run.row["accuracy"] > 0.99:
    ...             raise CancelFit
    """

    order: int = 0
    """Callbacks of a lower order come first; those of the same in the order in which they were given."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        for name in vars(cls):
            if name.startswith(("begin_", "before_", "after_")) and name not in MOMENTS:
                raise TypeError(f"{cls.__name__}: there is no moment {name!r}; there are {', '.join(MOMENTS)}")

    def begin_fit(self, run: Run) -> None:
        """Before everything else."""

    def begin_epoch(self, run: Run) -> None:
        """Before the first batch of an epoch is drawn."""

    def begin_batch(self, run: Run) -> None:
        """With ``run.batch``, which may be replaced, and the hypers of the step in force."""

    def after_loss(self, run: Run) -> None:
        """With ``run.loss``, which may be replaced by one that the step can follow."""

    def after_step(self, run: Run) -> None:
        """After the parameters have moved."""

    def after_batch(self, run: Run) -> None:
        """After a batch, whether it was trained on or cancelled; it is counted in ``run.step``."""

    def begin_validate(self, run: Run) -> None:
        """Before the validation data are looked at."""

    def after_epoch(self, run: Run) -> None:
        """After validation, with what was measured in ``run.row``; it is None if the epoch was cancelled."""

    def after_fit(self, run: Run) -> None:
        """At the end of the run, however it came."""


def in_order(callbacks: Iterable[Callback]) -> list[Callback]:
    """Return callbacks in the order in which they are called.

    Raises:
        TypeError: one is no :class:`Callback`.
    """
    callbacks = [callbacks] if isinstance(callbacks, Callback) else list(callbacks)
    for callback in callbacks:
        if not isinstance(callback, Callback):
            hint = "; call it to make one" if isinstance(callback, type) else ""
            raise TypeError(f"fit: a callback is a {type(callback).__name__}, expected a Callback{hint}")
    return sorted(callbacks, key=lambda callback: callback.order)
