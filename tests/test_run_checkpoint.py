"""Checkpoints of a run: what was interrupted, or killed, goes on bit for bit as if nothing had happened."""

from __future__ import annotations

import mmap
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from side_by_side import same
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset, RandomSampler

import functopt as fo
from functopt.training.callbacks import Callback, CancelEpoch, CancelFit
from functopt.training.fit import fit
from functopt.training.learner import Learner, PureLearner
from functopt.training.metrics import accuracy
from functopt.training.param_scheduler import one_cycle
from functopt.training.random import random_state
from functopt.training.recorder import Recorder
from functopt.training.run_checkpoint import Checkpoint

EPOCHS, STEPS = 3, 4


@pytest.fixture(autouse=True)
def signals():
    """Let Ctrl-C be handled as in a terminal: a shell lets what runs in the background ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Noisy(Dataset):
    """Data that are made anew at every look, out of all three global generators."""

    def __init__(self, count: int, noise: float = 0.1) -> None:
        self.x = torch.randn(count, 5, generator=torch.Generator().manual_seed(count), dtype=torch.float64)
        self.y = (self.x.sum(1) > 0).long() + (self.x[:, 0] > 0).long()
        self.noise = noise

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        more = torch.randn(5, dtype=torch.float64) + np.random.randn() + random.random()
        return self.x[i] + self.noise * more, self.y[i]


def net() -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        layers = nn.Linear(5, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3)
        return nn.Sequential(*layers).double()


def learner(kind: str) -> Any:
    model = net()
    if kind == "pure":
        return PureLearner(model, fo.adamw(), cross_entropy)
    groups: Any = fo.by_name(model, ("4.*", {}), weight_decay=0.1)
    if kind == "torch":
        optimizer = fo.from_torch(torch.optim.AdamW, [group["params"] for group in groups])
        return Learner(model, optimizer, cross_entropy)
    optimizer = fo.StatefulOptimizer(groups, fo.adamw(), compile=kind == "compiled")
    optimizer.mark(fo.bias_and_norm(model), do_wd=False)
    return Learner(model, optimizer, cross_entropy)


def loaders(data: str, seed: int) -> tuple[DataLoader, DataLoader]:
    generator = torch.Generator().manual_seed(seed)
    options: dict[str, Any] = {
        "global": {"shuffle": True},
        "own": {"shuffle": True, "generator": generator},
        "sampler": {"sampler": RandomSampler(Noisy(29), generator=generator)},
        "workers": {"shuffle": True, "num_workers": 1, "multiprocessing_context": "fork"},
    }[data]
    return DataLoader(Noisy(29), 8, **options), DataLoader(Noisy(20), 8, shuffle=True)


class Stateful(Callback):
    """Keeps a number of its own, and changes training by it."""

    def __init__(self) -> None:
        self.count = 0

    def after_batch(self, run: Any) -> None:
        self.count += 1

    def after_loss(self, run: Any) -> None:
        torch.rand(self.count % 3)

    def state_dict(self) -> dict[str, int]:
        return {"count": self.count}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.count = state_dict["count"]


class Fail(Callback):
    """Breaks off at a moment of a step."""

    def __init__(self, moment: str, step: int, error: Any = ZeroDivisionError) -> None:
        self.moment, self.step, self.error = moment, step, error

    def at(self, moment: str, run: Any) -> None:
        if (moment, run.step) == (self.moment, self.step):
            if self.error is signal.SIGINT:
                os.kill(os.getpid(), signal.SIGINT)
            else:
                raise self.error


for moment in (
    "begin_epoch",
    "begin_batch",
    "after_loss",
    "after_step",
    "after_batch",
    "begin_validate",
    "after_epoch",
):
    setattr(Fail, moment, lambda self, run, moment=moment: self.at(moment, run))


def run(kind: str, data: str, seed: int, *callbacks: Callback, **options: Any) -> tuple[Any, Recorder]:
    """Train what stands at another place of the random numbers for every seed."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    own = learner(kind)
    recorder = Recorder()
    options = {"epochs": EPOCHS, "metrics": accuracy, "schedule": one_cycle(0.05), "recorder": recorder, **options}
    fit(own, *loaders(data, seed), callbacks=[Stateful(), *callbacks], **options)
    return own, recorder


def everything(own: Any, recorder: Recorder) -> list[Any]:
    return [own.state_dict(), recorder.state_dict(), random_state()]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize(
    ("kind", "data", "breaks"),
    [
        ("eager", "global", "all"),
        ("pure", "own", "all"),
        ("torch", "sampler", "some"),
        ("compiled", "global", "once"),
        ("eager", "workers", "some"),
        ("pure", "sampler", "some"),
    ],
)
def test_a_resumed_run_is_the_unbroken_one(tmp_path, kind, data, breaks):
    """Broken off at every moment of every step; saved every three steps, so at each place of an epoch."""
    unbroken = everything(*run(kind, data, 0))
    assert len(unbroken[1]["epochs"]) == EPOCHS
    every = {"all": range(EPOCHS * STEPS), "some": [2, 5], "once": [5]}[breaks]
    places = [("after_loss", step) for step in every]
    if breaks == "all":
        places += [("after_batch", step + 1) for step in every]  # by then it is counted
        places += [("begin_batch", 4), ("after_step", 7), ("begin_validate", 4), ("after_epoch", 8), ("begin_epoch", 8)]
    for moment, step in places:
        path = tmp_path / f"{moment} {step}.pt"
        with pytest.raises(ZeroDivisionError):
            run(kind, data, 0, Fail(moment, step), Checkpoint(path, every=3))
        assert path.exists() == (step >= 3 and (moment, step) != ("after_batch", 3))
        assert same(everything(*run(kind, data, 1 + step * path.exists(), resume=path)), unbroken) == path.exists()


@pytest.mark.parametrize("kind", ["eager", "pure"])
@pytest.mark.parametrize("every", [None, 2, 100])
def test_ctrl_c_and_cancelling_save_where_they_end(tmp_path, capsys, kind, every):
    unbroken = everything(*run(kind, "own", 0))
    for moment, step in [
        ("after_loss", 1),
        ("after_batch", 4),
        ("begin_validate", 4),
        ("after_epoch", 8),
        ("begin_epoch", 4),
    ]:
        path = tmp_path / "run.pt"
        _, recorder = run(kind, "own", 0, Fail(moment, step, signal.SIGINT), Checkpoint(path, every))
        assert recorder.interrupted
        assert (
            f"after step {torch.load(path, weights_only=True)['recorder']['steps'][-1] + 1} of 12"
            in capsys.readouterr().err
        )
        again = run(kind, "own", 1, Checkpoint(path, every), resume=path)
        assert same(everything(*again), unbroken)
        assert not again[1].interrupted
        path.unlink()
    run(kind, "own", 0, Fail("after_batch", 6, CancelFit), Checkpoint(path, every))
    assert same(everything(*run(kind, "own", 1, resume=path)), unbroken)
    # a run that is over is over
    before = run(kind, "own", 0, Checkpoint(path, every))
    assert same(everything(*before), unbroken)
    saved = path.read_bytes()
    again = run(kind, "own", 1, resume=path)
    assert same(everything(*again), unbroken)
    assert path.read_bytes() == saved


def test_cancelled_epochs_are_resumed_too(tmp_path):
    cancel = lambda: Fail("after_batch", 6, CancelEpoch)
    unbroken = everything(*run("eager", "own", 0, cancel()))
    with pytest.raises(ZeroDivisionError):
        run("eager", "own", 0, cancel(), Fail("after_loss", 9), Checkpoint(tmp_path / "run.pt"))
    assert same(everything(*run("eager", "own", 1, cancel(), resume=tmp_path / "run.pt")), unbroken)


def test_it_can_be_interrupted_again_and_again(tmp_path):
    unbroken, path = everything(*run("eager", "global", 0)), tmp_path / "run.pt"
    for step in range(EPOCHS * STEPS):
        _, recorder = run(
            "eager", "global", step, Fail("after_batch", step + 1, CancelFit), Checkpoint(path), resume=path
        )
        assert len(recorder) == step + 1
    own, recorder = run("eager", "global", 99, Checkpoint(path), resume=path)
    assert same(everything(own, recorder), unbroken)


def test_a_recorder_that_was_there_before_comes_back(tmp_path):
    path = tmp_path / "run.pt"
    earlier = Recorder()
    earlier.record(3.0, learner("eager"))
    kept = earlier.state_dict()
    want = Recorder()
    want.load_state_dict(kept)
    unbroken = everything(*run("eager", "own", 0, recorder=want)[:1], want)
    with pytest.raises(ZeroDivisionError):
        run("eager", "own", 0, Fail("after_loss", 5), Checkpoint(path, 2), recorder=earlier)
    again = Recorder()
    assert same(everything(*run("eager", "own", 1, resume=path, recorder=again)[:1], again), unbroken)
    assert len(again) == 13


def test_what_cannot_be_resumed_says_so(tmp_path):
    path = tmp_path / "run.pt"
    run("eager", "own", 0, Fail("after_batch", 6, CancelFit), Checkpoint(path))
    before = path.read_bytes()
    with pytest.raises(ValueError, match="has epochs=3, but here it is 4"):
        run("eager", "own", 0, resume=path, epochs=4)
    with pytest.raises(ValueError, match="has steps_per_epoch=4, but here it is 2"):
        run("eager", "own", 0, resume=path, steps_per_epoch=2)
    with pytest.raises(ValueError, match="had 1 random generators of their own, these have 0"):
        run("eager", "global", 0, resume=path)
    with pytest.raises(ValueError, match=r"it has the state of \['Stateful'\]"):
        run("eager", "own", 0, Stateful(), resume=path)
    with pytest.raises(ValueError, match="expected the state of a PureLearner"):
        run("pure", "own", 0, resume=path)
    torch.save({"model": 1}, path)
    with pytest.raises(ValueError, match="no checkpoint of a run"):
        run("eager", "own", 0, resume=path)
    path.write_bytes(before)
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere"):
        run("eager", "own", 0, resume=tmp_path / "nowhere" / "run.pt")
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere"):
        run("eager", "own", 0, Checkpoint(tmp_path / "nowhere" / "run.pt"))
    either: Any = ({"resume": path}, {"callbacks": Checkpoint(path)})
    for options in either:
        with pytest.raises(TypeError, match="an iterator, which cannot be started anew"):
            fit(learner("eager"), iter(loaders("own", 0)[0]), epochs=1, steps_per_epoch=2, **options)
    with pytest.raises(ValueError, match="every must be a positive"):
        Checkpoint(path, every=0)


# Killed

TRIALS, AT_ONCE, LONG = 30, 5, 6


def training(path: Path, completed: Any = None, **options: Any) -> list[Any]:
    """Train for some epochs of four steps, with a model that takes much longer to save than to take a step with."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    model = net()
    model.register_buffer("ballast", torch.randn(400_000, generator=torch.Generator().manual_seed(0)))
    own = Learner(model, fo.StatefulOptimizer(model.parameters(), fo.adamw()), cross_entropy)
    callbacks = [Count(completed)] if completed is not None else []
    recorder = fit(own, *loaders("own", 0), epochs=LONG, callbacks=[*callbacks, *options.pop("callbacks", [])],
                   schedule=one_cycle(0.05), **options)  # fmt: skip
    return everything(own, recorder)


class Count(Callback):
    """Tells another process how many steps are done, before and after they are saved."""

    def __init__(self, completed: Any) -> None:
        self.completed = completed

    order = 200

    def after_batch(self, run: Any) -> None:
        self.completed[:] = run.step.to_bytes(4, "little")


def kill_while_training(folder: Path) -> None:
    """Let runs be killed at random moments, some of them at a time."""
    torch.set_num_threads(1)
    training(folder / "once.pt")  # so that the others need not load what the first step needs
    rng = random.Random(0)
    for first in range(0, TRIALS, AT_ONCE):
        running = []
        for trial in range(first, first + AT_ONCE):
            completed = mmap.mmap(-1, 4)  # shared with the process
            path = folder / str(trial) / "run.pt"
            path.parent.mkdir()
            pid = os.fork()
            if not pid:
                training(path, completed, callbacks=[Checkpoint(path, every=1)])
                os._exit(0)
            running.append((pid, completed, path))
        for pid, completed, path in running:
            while not any(completed[:]):
                time.sleep(0.002)
            time.sleep(rng.uniform(0, 0.1))
            os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            assert status == 0 or os.WTERMSIG(status) == signal.SIGKILL  # a loaded machine may be too late
            (path.parent / "completed").write_bytes(completed[:])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_killed_run_loses_only_the_steps_that_were_not_saved(tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=kill_while_training, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == 0
    unbroken = training(tmp_path / "never.pt")
    within, early, found = 0, 0, {}
    for trial in range(TRIALS):
        folder = tmp_path / str(trial)
        completed = int.from_bytes((folder / "completed").read_bytes(), "little")
        saved = torch.load(folder / "run.pt", weights_only=True)
        steps = len(saved["recorder"]["steps"])
        assert steps in (completed, completed + 1)
        within += len([*folder.glob(".run.pt.*.tmp")])
        early += steps < LONG * STEPS
        # every trial is the same run, up to where it was killed
        assert same(saved, found.setdefault(steps, (saved, folder / "run.pt"))[0])
    for _, path in found.values():
        assert same(training(path, resume=path), unbroken)
    print(f"{within} of {TRIALS} kills fell into a save; they came after {sorted(found)} of {LONG * STEPS} steps")
    assert within >= TRIALS // 5  # they were killed while saving, not between
    assert len(found) > 3
    assert early > TRIALS // 2  # a loaded machine may be too late for some
