"""A run: what callbacks know while a loop trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from torch import Tensor

from functopt.ema import Ema
from functopt.training.learner import Trained

if TYPE_CHECKING:
    from functopt.training.callbacks import Callback
    from functopt.training.recorder import Recorder

__all__ = ["Run"]

_DECAY = 0.98  # of the running loss, as in fastai


class Run:
    """What callbacks are given.

    ``step`` counts the batches that are done with, over all epochs, so during a batch it is the number of its step,
    from 0.

    Args:
        learner: what is trained.
        recorder: keeps the losses and hypers of its steps.
        train: the training data.
        valid: the validation data, or None.
        callbacks: in the order in which they are called.
        epochs: how many.
        steps_per_epoch: how many batches each has.
    """

    def __init__(
        self,
        learner: Trained,
        recorder: Recorder,
        train: Any,
        valid: Any,
        callbacks: Sequence[Callback],
        epochs: int,
        steps_per_epoch: int,
    ) -> None:
        self.learner, self.recorder, self.train, self.valid = learner, recorder, train, valid
        self.callbacks, self.epochs, self.steps_per_epoch = callbacks, epochs, steps_per_epoch
        self.epoch = 0  # from 0
        self.seen = 0  # batches of this epoch that are done with
        self.epoch_ended = False  # nothing but after_epoch is left of it
        self.between_batches = True  # else some of a batch's work is done, and some is not
        self.failed = False  # by an exception that is not for the loop
        self.batch: Any = None
        self.loss: Any = None
        self.row: Mapping[str, float] | None = None  # what was measured after this epoch
        # The random generators before the first batch of this epoch was drawn, and after the last was trained on.
        self.epoch_random: Any = None
        self.random_after_training: Any = None
        self._running: Ema | None = None

    @property
    def step(self) -> int:
        """How many batches are done with, over all epochs."""
        return self.epoch * self.steps_per_epoch + self.seen

    @property
    def total_steps(self) -> int:
        """How many batches there are over all epochs."""
        return self.epochs * self.steps_per_epoch

    @property
    def position(self) -> float:
        """Where the run stands, from 0 to 1."""
        return self.step / self.total_steps

    @property
    def running_loss(self) -> Tensor | None:
        """The debiased moving average of the losses of all steps so far, with a decay of 0.98: a 0-d tensor on its
        device, so that to ask for it waits for nothing. None before the first step."""
        return None if self._running is None else self._running.mean

    def count_loss(self, loss: Tensor) -> None:
        """Take one more loss into the running average."""
        loss = loss.detach()
        running = Ema.zeros(loss, accumulate=True) if self._running is None else self._running
        self._running = running.update(loss.to(running.total.dtype), _DECAY)

    def begin_epoch(self, epoch: int) -> None:
        """Go to the beginning of an epoch."""
        self.epoch, self.seen, self.epoch_ended, self.row = epoch, 0, False, None

    def end_epoch(self) -> None:
        """Go to the end of this epoch."""
        self.epoch_ended, self.random_after_training = True, None

    def call(self, moment: str) -> None:
        """Call all callbacks."""
        for callback in self.callbacks:
            own: Callable[[Run], None] = getattr(callback, moment)
            own(self)

    def finish(self) -> None:
        """Call ``after_fit`` of all callbacks, even if one of them raises."""
        with ExitStack() as stack:
            for callback in reversed(self.callbacks):
                stack.callback(callback.after_fit, self)

    def state_dict(self) -> dict[str, Any]:
        """Return where the run stands, between two batches."""
        return {
            "epochs": self.epochs,
            "steps_per_epoch": self.steps_per_epoch,
            "epoch": self.epoch + self.epoch_ended,
            "seen": 0 if self.epoch_ended else self.seen,
            "running": None if self._running is None else [t.clone() for t in self._running],
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go to where a run stood."""
        self.epoch, self.seen, self.epoch_ended = state_dict["epoch"], state_dict["seen"], False
        self._running = None if state_dict["running"] is None else Ema(*(t.clone() for t in state_dict["running"]))
