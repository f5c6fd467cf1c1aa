"""The loop."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from functopt.training.callbacks import Callback, CancelBatch, CancelEpoch, CancelFit, in_order
from functopt.training.interrupt import Interrupted, Interrupts
from functopt.training.learner import Trained
from functopt.training.metrics import Metric, as_metrics, validate
from functopt.training.param_scheduler import ParamScheduler
from functopt.training.progress import Progress
from functopt.training.recorder import Recorder
from functopt.training.run import Run
from functopt.training.run_checkpoint import SavedRun, run_random, saved_run

__all__ = ["fit"]


def fit(
    learner: Trained,
    train: Iterable[Any],
    valid: Iterable[Any] | None = None,
    *,
    epochs: int,
    metrics: Any = None,
    callbacks: Callback | Sequence[Callback] = (),
    recorder: Recorder | None = None,
    schedule: Mapping[str, Any] | None = None,
    steps_per_epoch: int | None = None,
    progress: bool | None = None,
    resume: str | os.PathLike[str] | None = None,
) -> Recorder:
    """Train for some epochs, and look at the validation data after each.

    Ctrl-C stops the run once the step under way is whole; ``fit`` then returns as it would at the end, having said so,
    and ``recorder.interrupted`` is true. A second Ctrl-C raises KeyboardInterrupt at once, which may be in the middle
    of a step. (In a thread, or where somebody else handles the signal, it is left to them.)

    Args:
        learner: a :class:`Learner <functopt.training.Learner>` or
            :class:`PureLearner <functopt.training.PureLearner>`. It is in training mode afterwards.
        train: batches, as a DataLoader or a list gives them: tuples of the model's inputs and the target. Every epoch
            goes through them once.
        valid: batches to validate with.
        epochs: how many.
        metrics: one, a list or a dict by name, of functions ``(predictions, target) -> mean of the batch``, which are
            averaged over all examples, or of objects with ``reset``, ``update`` and ``value``, such as
            :class:`Gathered <functopt.training.Gathered>`. They are of the validation data.
        callbacks: what to do at the moments of the run; see :class:`Callback <functopt.training.Callback>`.
        recorder: to go on with; by default a new one.
        schedule: hypers by position in training: schedules of length 1 by name, or lists with one for every group.
        steps_per_epoch: how many batches an epoch takes; needed where ``train`` has no length. An iterator goes on in
            the next epoch where this one ended.
        progress: show a bar with the running loss; by default on a terminal, if tqdm is installed.
        resume: a file that :class:`Checkpoint <functopt.training.Checkpoint>` saved. All else is given as it was to the
            run that saved it, which then goes on bit for bit. If there is no such file yet, the run starts anew.

    Returns:
        The recorder. Its ``epochs`` has a row for each: ``epoch`` (from 0), ``step`` (how many were recorded by then),
        ``train_loss`` (the moving average of the losses with a decay of 0.98, debiased), and of the validation data
        ``valid_loss`` and the metrics.

    Raises:
        TypeError: ``train`` has no length and ``steps_per_epoch`` is not given, or an argument is of a wrong kind.
        ValueError: there are no batches, or fewer or more than was said, or ``resume`` is of another run.

    >>> recorder = fit(learner, train_loader, valid_loader, epochs=5, metrics=accuracy, schedule=one_cycle(1e-2))
    """
    recorder = Recorder() if recorder is None else recorder
    given = [callbacks] if isinstance(callbacks, Callback) else callbacks
    count = _steps_per_epoch(train, epochs, steps_per_epoch)
    run = Run(learner, recorder, train, valid, in_order([*given, Progress(progress)]), epochs, count)
    loop = _Loop(run, as_metrics(metrics), schedule, limit=steps_per_epoch)
    saved = saved_run(resume, run)
    recorder.interrupted = False
    with Interrupts() as interrupts:
        try:
            run.call("begin_fit")
            loop.epochs(saved, interrupts.check)
        except CancelFit:
            pass
        except Interrupted:
            recorder.interrupted = True
        except BaseException:
            run.failed = True
            raise
        finally:
            run.finish()
    if recorder.interrupted:
        print(f"fit: interrupted after step {run.step} of {run.total_steps}, which is whole", file=sys.stderr)
    return recorder


class _Loop:
    def __init__(self, run: Run, metrics: Mapping[str, Metric], schedule: Mapping[str, Any] | None, limit: int | None):
        self.run, self.metrics, self.limit = run, metrics, limit
        self.scheduler = ParamScheduler(run.learner, schedule, run.total_steps) if schedule else None

    def epochs(self, saved: SavedRun | None, check: Callable[[], None]) -> None:
        """Train and validate from the beginning, or from where a saved run stands."""
        run = self.run
        if saved is not None and not saved.seen:  # between two epochs, else within one
            saved.put_back(run, "now")
            saved = None
        for epoch in range(saved.epoch if saved else run.epoch, run.epochs):
            check()
            run.begin_epoch(epoch)
            try:
                run.call("begin_epoch")
                run.learner.train(True)
                self.train(self.draw(saved), check)
                self.validate(check)
            except CancelEpoch:
                pass
            saved = None
            run.end_epoch()
            run.call("after_epoch")
        check()

    def draw(self, saved: SavedRun | None) -> Iterator[Any]:
        """Start the training data, and pass over what a saved run has seen of them."""
        run = self.run
        if saved is not None:
            saved.put_back(run, "epoch")
        run.epoch_random = run_random(run)
        batches = iter(run.train)
        if saved is not None:
            for _ in islice(batches, run.seen):
                pass
            saved.set_random(run, "now")
        return batches if self.limit is None else islice(batches, self.limit - run.seen)

    def train(self, batches: Iterator[Any], check: Callable[[], None]) -> None:
        run = self.run
        for run.batch in batches:
            if run.seen == run.steps_per_epoch:
                raise ValueError(
                    f"fit: the training data have a length of {run.steps_per_epoch}, but gave more batches"
                )
            self.batch()
            if run.seen == run.steps_per_epoch:
                run.random_after_training = run_random(run)
            check()
        if run.seen < run.steps_per_epoch:
            raise ValueError(f"fit: the training data gave {run.seen} batches, expected {run.steps_per_epoch}")

    def batch(self) -> None:
        run, learner = self.run, self.run.learner
        run.between_batches = False
        try:
            if self.scheduler is not None:
                self.scheduler.set_for(run.step)
            run.call("begin_batch")
            run.loss = learner.loss(run.batch)
            run.call("after_loss")
            run.recorder.record(run.loss, learner)
            learner.step(run.loss)
            run.count_loss(run.loss)
            run.call("after_step")
        except CancelBatch:
            pass
        run.seen, run.between_batches = run.seen + 1, True
        run.call("after_batch")

    def validate(self, check: Callable[[], None]) -> None:
        run = self.run
        row = {} if run.running_loss is None else {"train_loss": run.running_loss}
        if run.valid is not None:
            run.call("begin_validate")
            row |= validate(run.learner, run.valid, self.metrics, between=check)
        run.recorder.record_metrics(run.epoch, row)
        run.row = run.recorder.epochs[-1]


def _steps_per_epoch(train: Any, epochs: int, given: int | None) -> int:
    """Return how many batches an epoch has.

    Raises:
        TypeError: that is not known.
        ValueError: there are none.
    """
    if epochs < 1:
        raise ValueError(f"fit: epochs must be at least 1, got {epochs}")
    if given is None:
        try:
            given = len(train)
        except TypeError as error:
            raise TypeError(
                f"fit: the training data, a {type(train).__name__}, have no length; say steps_per_epoch, by which "
                "schedules, progress and epochs are counted"
            ) from error
    if given < 1:
        raise ValueError("fit: there are no training batches")
    return given
