"""Faults: processes killed while they save, and state dicts that are damaged."""

from __future__ import annotations

import copy
import mmap
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from side_by_side import net, same, snapshot, train_step
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import functopt as fo
from functopt import StatefulOptimizer, from_torch_state_dict

# Killed while saving

TRIALS, AT_ONCE, STEPS = 50, 5, 400


class Training:
    """A training that takes much longer to save than to take a step."""

    def __init__(self, saved: dict[str, Any] | None = None) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Embedding(1000, 10), nn.Flatten(), nn.Linear(40, 3))
        self.model.register_buffer("ballast", torch.randn(1_000_000))
        tx = fo.chain(fo.clip_by_global_norm(1.0), fo.adamw(fo.cosine_decay_schedule(0.01, STEPS)))
        self.optimizer = StatefulOptimizer(self.model.named_parameters(), tx)
        self.done = self.started = 0
        if saved is not None:
            self.done = self.started = saved["done"]
            self.model.load_state_dict(saved["model"])
            self.optimizer.load_state_dict(saved["optimizer"])

    def step(self) -> None:
        generator = torch.Generator().manual_seed(self.done)
        x = torch.randint(1000, (8, 4), generator=generator)
        self.optimizer.zero_grad()
        cross_entropy(self.model(x), x[:, 0] % 3).backward()
        self.optimizer.step()
        self.done += 1

    def state_dict(self) -> dict[str, Any]:
        return {"done": self.done, "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}


def start(folder: Path) -> tuple[int, mmap.mmap]:
    """Start a process that trains and saves after every step; it also counts what it has completed."""
    completed = mmap.mmap(-1, 4)  # shared with the process
    pid = os.fork()
    if not pid:
        training = Training()
        while training.done < STEPS:
            training.step()
            fo.save(training.state_dict(), folder / "last.pt")
            completed[:] = training.done.to_bytes(4, "little")
        os._exit(0)
    return pid, completed


def kill_while_saving(folder: Path) -> None:
    """Let trainings be killed at random moments, some of them at a time."""
    torch.set_num_threads(1)
    Training().step()  # so that the others need not load what the first step needs
    rng = random.Random(0)
    for first in range(0, TRIALS, AT_ONCE):
        running = []
        for trial in range(first, first + AT_ONCE):
            (folder / str(trial)).mkdir()
            running.append((trial, *start(folder / str(trial))))
        for trial, pid, completed in running:
            while not any(completed[:]):
                time.sleep(0.002)
            time.sleep(rng.uniform(0, 0.05))
            os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            assert os.WTERMSIG(status) == signal.SIGKILL
            (folder / str(trial) / "completed").write_bytes(completed[:])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_process_killed_while_it_saves_leaves_a_checkpoint_that_resumes(tmp_path: Path):
    process = multiprocessing.get_context("spawn").Process(target=kill_while_saving, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == 0
    found: dict[int, dict[str, Any]] = {}
    unfinished = 0
    for trial in range(TRIALS):
        folder = tmp_path / str(trial)
        saved = torch.load(folder / "last.pt", weights_only=True)
        completed = int.from_bytes((folder / "completed").read_bytes(), "little")
        assert saved["done"] in (completed, completed + 1)
        unfinished += len([*folder.glob(".last.pt.*.tmp")])
        # every trial is the same training, up to where it was killed
        assert same(saved, found.setdefault(saved["done"], saved))
        shutil.rmtree(folder)
    assert unfinished >= TRIALS // 5  # they were killed while saving, not between

    # go on from each beside the training that nothing interrupted
    unbroken, resumed = Training(), []
    for step in range(max(found) + 4):
        for again in resumed:
            assert same(again.state_dict(), unbroken.state_dict())
        resumed = [again for again in resumed if step < again.started + 3]
        if step in found:
            resumed.append(Training(found[step]))
        for training in (unbroken, *resumed):
            training.step()
    assert not resumed
    assert len(found) > 3


def test_save_overwrites_follows_links_and_cleans_up(tmp_path: Path):
    path, link = tmp_path / "a.pt", tmp_path / "link.pt"
    fo.save({"a": torch.ones(2)}, str(path))
    link.symlink_to(path)
    fo.save({"a": torch.zeros(3)}, link)
    assert link.is_symlink()
    assert same(torch.load(path, weights_only=True), {"a": torch.zeros(3)})
    with pytest.raises(Exception, match=r"[Pp]ickle"):
        fo.save({"a": torch.ones(2), "b": lambda: None}, path)
    assert same(torch.load(path, weights_only=True), {"a": torch.zeros(3)})
    assert sorted(os.listdir(tmp_path)) == ["a.pt", "link.pt"]
    with pytest.raises(FileNotFoundError):
        fo.save({}, tmp_path / "nowhere" / "a.pt")


# Damaged state dicts


def ours(kind: str) -> tuple[Any, StatefulOptimizer]:
    model = net()
    layers = [model[0].named_parameters(prefix="0"), model[2].named_parameters(prefix="2")]
    groups: Any = [{"params": list(layers[0])}, {"params": list(layers[1]), "lr": 0.02}]
    if kind == "scheduled":
        optimizer = StatefulOptimizer(
            groups, fo.chain(fo.clip_by_global_norm(1.0), fo.ranger(fo.cosine_schedule(0.1, 0.2, 9)))
        )
        optimizer.mark([model[0].bias], do_wd=False)
    elif kind == "compiled":
        optimizer = StatefulOptimizer(model.parameters(), fo.adamw(debias="power"), compile={"backend": "eager"})
    else:
        tx = {"adamw": fo.adamw, "sgd": lambda: fo.sgd(momentum=0.9), "rmsprop": fo.rmsprop}[kind]()
        optimizer = StatefulOptimizer(groups, tx)
    return model, optimizer


def theirs(kind: str) -> Any:
    model = net(seed=1)
    groups: Any = [{"params": list(model[0].named_parameters(prefix="0"))}]
    groups.append({"params": list(model[2].named_parameters(prefix="2")), "lr": 0.02})
    made: Any = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD, "rmsprop": torch.optim.RMSprop}[kind]
    optimizer = made(groups, momentum=0.9) if kind == "sgd" else made(groups)
    for step in range(3):
        train_step(model, optimizer, step)
    return optimizer.state_dict()


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of everything in nested dicts and lists."""
    yield path
    for key, child in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield from places(child, (*path, key))


JUNK = st.one_of(
    st.sampled_from([None, True, -1, 7, 0.5, -0.5, 1.5, float("nan"), float("inf"), "x", "lr", b"", (), (0.9, 0.99)]),
    st.sampled_from([[], {}, [1], [{}], {"params": [0]}, {0: {}}, {"x": 1}, slice(1, 2), object, lambda: 0]),
    st.builds(
        lambda shape, dtype: torch.ones(shape, dtype=dtype),
        st.sampled_from([(), (1,), (3,), (8,), (8, 5), (2, 2, 2)]),
        st.sampled_from([torch.float32, torch.int64, torch.bool, torch.complex64]),
    ),
    st.sampled_from([torch.ones(8, device="meta"), torch.ones(8).to_sparse(), fo.constant_schedule(0.1)]),
)


@st.composite
def damaged(draw: st.DrawFn, saved: Any) -> Any:
    """Draw what remains of a state dict after a few accidents."""
    saved = copy.deepcopy(saved)
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        if not isinstance(saved, dict):
            break
        path = draw(st.sampled_from([*places(saved)]))
        if not path:
            saved = draw(st.one_of(JUNK, st.just(saved)))
            continue
        *above, key = path
        node: Any = saved
        for part in above:
            node = node[part]
        accident = draw(st.sampled_from(["remove", "replace", "rename", "add", "other value"]))
        if accident == "remove":
            del node[key]
        elif accident == "replace":
            node[key] = draw(JUNK)
        elif accident == "other value" and isinstance(node[key], Tensor):
            value = node[key].clone()
            node[key] = draw(st.sampled_from([value.unsqueeze(0), torch.ones(value.numel() + 1), value.float()]))
        elif accident == "other value" and isinstance(node[key], float):
            node[key] = draw(st.floats(-0.5, 1.5))
        elif isinstance(node, dict):
            new = draw(st.one_of(st.sampled_from([*node]), st.sampled_from(["x", "lr", "steps", 0, 9, None, "do_wd"])))
            value = node.pop(key) if accident == "rename" else draw(JUNK)
            node[new] = value
        else:
            node.insert(key, copy.deepcopy(node[key]))
    return saved


def loads_or_changes_nothing(model: Any, optimizer: StatefulOptimizer, load: Any, saved: Any) -> str:
    """Load something, and take a step after it; return what was said."""
    before, groups = snapshot(optimizer), optimizer.param_groups
    entries = [dict(group) for group in groups]
    try:
        load(optimizer, saved)
        said = "loaded"
    except (ValueError, TypeError, KeyError) as error:
        said = f"{type(error).__name__}: {error}"
        assert len(said) > 40, said
        assert same(snapshot(optimizer), before)
        assert optimizer.param_groups is groups
        for group, old in zip(groups, entries, strict=True):
            assert group.keys() == old.keys()
            assert all(value is old[name] for name, value in group.items())
    train_step(model, optimizer, 9)
    return said


def after_200_accidents(saved: Any, load: Callable[[Any], str]) -> None:
    said: Counter[str] = Counter()

    @settings(max_examples=200, deadline=None, derandomize=True, database=None, phases=[Phase.generate])
    @given(damaged(saved))
    def each(damage: Any) -> None:
        said[load(damage)] += 1

    each()
    # some do no harm, and the others are told apart
    assert said.total() == 200
    assert 5 < said["loaded"] < 150
    assert len(said) > 25


@pytest.fixture(scope="module")
def trained() -> dict[str, Any]:
    """Optimizers after two steps, and what they saved then."""
    made = {}
    for kind in ("adamw", "sgd", "rmsprop", "scheduled", "compiled"):
        model, optimizer = ours(kind)
        for step in range(2):
            train_step(model, optimizer, step)
        made[kind] = model, optimizer, optimizer.state_dict()
    return made


def restored(trained: dict[str, Any], kind: str) -> tuple[Any, StatefulOptimizer]:
    model, optimizer, saved = trained[kind]
    optimizer.load_state_dict(saved)
    for group, own in zip(optimizer.param_groups, saved["param_groups"], strict=True):
        for name in {*group} - {*own}:  # as torch does, it takes over what it does not know
            del group[name]
    train_step(model, optimizer, 2)
    return model, optimizer


@pytest.mark.parametrize("kind", ["adamw", "sgd", "scheduled", "compiled"])
def test_a_damaged_state_dict_is_loaded_or_changes_nothing(trained: Any, kind: str):
    def load(damage: Any) -> str:
        model, optimizer = restored(trained, kind)
        return loads_or_changes_nothing(model, optimizer, StatefulOptimizer.load_state_dict, damage)

    after_200_accidents(trained[kind][2], load)


@pytest.mark.parametrize("kind", ["adamw", "sgd", "rmsprop"])
def test_a_damaged_checkpoint_of_torch_is_loaded_or_changes_nothing(trained: Any, kind: str):
    def load(damage: Any) -> str:
        model, optimizer = restored(trained, kind)
        return loads_or_changes_nothing(model, optimizer, from_torch_state_dict, damage)

    after_200_accidents(theirs(kind), load)
