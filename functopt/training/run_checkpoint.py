"""Checkpoints of a run, from which it goes on as if it had never stopped."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from functopt.checkpoint import save
from functopt.training.callbacks import Callback
from functopt.training.random import generators_of, random_state, set_random_state
from functopt.training.run import Run

__all__ = ["Checkpoint", "SavedRun", "run_random", "saved_run"]

_FORMAT = 1


class Checkpoint(Callback):
    """Save a run every so often, so that ``fit(..., resume=path)`` goes on from there, bit for bit.

    The file holds the learner (model, optimizer, hypers), where the run and its schedule stand, the recorder, callbacks
    that have a ``state_dict``, and the state of the global random generators and of those that belong to the data (a
    ``generator`` of a DataLoader or of its sampler), now and at the beginning of the epoch: with these a shuffled
    epoch is drawn again, and what the run has seen of it is passed over. A generator that is held elsewhere, as by a
    sampler of your own, is not known here: let it be a ``torch.Generator`` in the attribute ``generator``.

    It is saved with :func:`functopt.save`, as a whole or not at all, and ``torch.load(weights_only=True)`` reads it.
    It is also saved when the run ends, by itself, by Ctrl-C or by a callback that cancels it between two batches; not
    after an error.

    Args:
        path: the file.
        every: steps from one save to the next; by default an epoch, its validation included.

    Raises:
        ValueError: ``every`` is not positive.
        FileNotFoundError: at the beginning of a run: there is no such folder.
        TypeError: at the beginning of a run: its training data are an iterator, which cannot be started anew.

    >>> fit(learner, train, epochs=10, callbacks=[Checkpoint("run.pt", every=500)], resume="run.pt")
    """

    order = 100  # after everything else that belongs to a moment

    def __init__(self, path: str | os.PathLike[str], every: int | None = None) -> None:
        if every is not None and every < 1:
            raise ValueError(f"Checkpoint: every must be a positive number of steps, got {every}")
        self.path, self.every = Path(path), every
        self._saved: Any = None

    def begin_fit(self, run: Run) -> None:
        """Look for what would make saving or resuming fail."""
        _check_folder(self.path)
        _check_restarts(run.train)
        self._saved = None

    def after_batch(self, run: Run) -> None:
        """Save if it is time."""
        if self.every is not None and run.step % self.every == 0:
            self.save(run)

    def after_epoch(self, run: Run) -> None:
        """Save, unless that is done by steps."""
        if self.every is None:
            self.save(run)

    def after_fit(self, run: Run) -> None:
        """Save what came since."""
        if run.between_batches and not run.failed and self._saved != (run.step, run.epoch_ended):
            self.save(run)

    def save(self, run: Run) -> None:
        """Save the run as it stands, between two batches."""
        now = run.random_after_training or run_random(run)
        saved = {
            "format": _FORMAT,
            "learner": run.learner.state_dict(),
            "run": run.state_dict(),
            "recorder": run.recorder.state_dict(),
            "callbacks": {name: own.state_dict() for name, own in _with_state(run).items()},
            "random": {"epoch": run.epoch_random, "now": now},
        }
        save(saved, self.path)
        self._saved = run.step, run.epoch_ended


class SavedRun:
    """A saved run, looked at and about to be put back."""

    def __init__(self, saved: Mapping[str, Any]) -> None:
        self._saved = saved
        self.epoch, self.seen = saved["run"]["epoch"], saved["run"]["seen"]

    def put_back(self, run: Run, moment: str) -> None:
        """Set the run, the learner, the recorder and the callbacks to what was saved, and :meth:`set_random`."""
        own = _with_state(run)
        run.learner.load_state_dict(self._saved["learner"])
        run.recorder.load_state_dict(self._saved["recorder"])
        for name, state in self._saved["callbacks"].items():
            own[name].load_state_dict(state)
        run.load_state_dict(self._saved["run"])
        self.set_random(run, moment)

    def set_random(self, run: Run, moment: str) -> None:
        """Set all generators to their state at the beginning of the epoch, or to that of now."""
        state = self._saved["random"][moment]
        set_random_state(state["global"])
        for generator, own in zip(generators_of(run.train, run.valid), state["data"], strict=True):
            generator.set_state(own)


def saved_run(path: str | os.PathLike[str] | None, run: Run) -> SavedRun | None:
    """Return what is to be resumed, or None if nothing was saved.

    Raises:
        FileNotFoundError: there is no such folder; a missing file means that nothing was saved yet.
        TypeError: the training data are an iterator, which cannot be started anew.
        ValueError: the file is no checkpoint of a run, or that of another one.
    """
    if path is None:
        return None
    _check_folder(Path(path))
    _check_restarts(run.train)
    if not Path(path).exists():
        return None
    saved = torch.load(path, weights_only=True, map_location="cpu")
    if not isinstance(saved, dict) or saved.get("format") != _FORMAT:
        raise ValueError(f"fit: {os.fspath(path)} is no checkpoint of a run, as Checkpoint saves it")
    for name in ("epochs", "steps_per_epoch"):
        there, here = saved["run"][name], getattr(run, name)
        if there != here:
            raise ValueError(f"fit: cannot resume from {os.fspath(path)}: it has {name}={there}, but here it is {here}")
    own, data = sorted(_with_state(run)), len(generators_of(run.train, run.valid))
    if sorted(saved["callbacks"]) != own:
        raise ValueError(
            f"fit: cannot resume from {os.fspath(path)}: it has the state of {sorted(saved['callbacks'])}, but the "
            f"callbacks with a state are {own}"
        )
    if len(saved["random"]["now"]["data"]) != data:
        raise ValueError(
            f"fit: cannot resume from {os.fspath(path)}: its data had {len(saved['random']['now']['data'])} random "
            f"generators of their own, these have {data}"
        )
    return SavedRun(saved)


def run_random(run: Run) -> dict[str, Any]:
    """Return the state of the global generators and of those of the data."""
    return {
        "global": random_state(),
        "data": [generator.get_state() for generator in generators_of(run.train, run.valid)],
    }


def _with_state(run: Run) -> dict[str, Any]:
    """Return the callbacks that have a state, by the names of their classes."""
    found: dict[str, Any] = {}
    for callback in run.callbacks:
        if callable(getattr(callback, "state_dict", None)):
            name = type(callback).__name__
            found[name if name not in found else f"{name} {len(found)}"] = callback
    return found


def _check_folder(path: Path) -> None:
    if not path.resolve().parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.resolve().parent} for a checkpoint to be in")


def _check_restarts(train: Any) -> None:
    if isinstance(train, Iterator):  # not iter(train), by which a DataLoader draws a random number
        raise TypeError(
            f"the training data are a {type(train).__name__}, an iterator, which cannot be started anew where a run is "
            "resumed; give a DataLoader, a list of batches, or an object whose __iter__ starts an epoch"
        )
