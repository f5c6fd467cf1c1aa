"""The state of StatefulOptimizer: seen, saved, resumed bit for bit, copied."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from side_by_side import SCHEDULERS, net, same, snapshot, train_step
from torch import Tensor, nn
from torch.optim import lr_scheduler

import functopt as fo
from functopt import StatefulOptimizer, param_state, tree


class KeepState(NamedTuple):
    """What the link ``keep`` remembers."""

    gradient: Any
    params: Any


@fo.link
def keep() -> Any:
    """A link that keeps what it was given, as a pure function may."""

    def init(params) -> KeepState:
        return KeepState(tree.zeros_like(params), tree.zeros_like(params))

    def transform(updates, state, params):
        return updates, KeepState(updates, params)

    return init, transform


def test_a_state_does_not_change_with_parameters_and_gradients():
    p = nn.Parameter(torch.tensor([2.0]))
    optimizer = StatefulOptimizer([p], fo.chain(keep(), fo.scale_by_lr(1.0)))
    p.grad = torch.tensor([0.5])
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)
    assert p == 1.5
    assert {name: float(t) for name, t in optimizer.state[p].items()} == {"gradient": 0.5, "params": 2.0}


class Factors(NamedTuple):
    """An entry of a parameter that is a nesting of its own."""

    row: Tensor
    column: Any


def test_a_state_is_taken_apart_by_parameter():
    def state(keys: str, value: float) -> Any:
        factors = {k: Factors(torch.tensor(value), () if k == "b" else torch.tensor(value + 1)) for k in keys}
        return torch.tensor(value), (fo.Ema(factors, torch.tensor(value)), ())

    whole, keys = state("abc", 0.0), {*"abc"}
    found = {entry: float(leaf) for entry, leaf in param_state.entries(whole, keys).items()}
    rows = {(k, "total.row"): 0.0 for k in "abc"} | {(k, "total.column"): 1.0 for k in "ac"}
    assert found == {(param_state.SHARED, "0"): 0.0, (param_state.SHARED, "weight"): 0.0} | rows
    assert same(param_state.select(whole, keys, {*"bc"}), state("bc", 0.0))


def test_a_state_can_be_built_on_meta_tensors():
    model = net().to("meta")
    optimizer = StatefulOptimizer(model.parameters(), fo.ranger())
    for p in model.parameters():
        p.grad = torch.empty_like(p)
    optimizer.step()
    assert all(leaf.is_meta for own in optimizer.state.values() for leaf in own.values())


def test_state_has_an_entry_for_every_parameter():
    model = net()
    optimizer = StatefulOptimizer(model.named_parameters(), fo.chain(fo.trace(0.5), fo.adam(fo.constant_schedule(0.1))))
    train_step(model, optimizer, 0)
    state: Any = optimizer.state
    assert list(state) == [*model.parameters(), "shared"]
    assert list(state["shared"]) == ["count"]
    names = ["trace.total", "trace.weight", "mu.total", "mu.weight", "nu.total", "nu.weight"]
    assert [name.removeprefix("inner.") for name in state[model[0].weight]] == [*names, "shared.count"]
    assert state[model[0].weight]["inner.mu.total"].shape == (8, 5)
    with pytest.raises(AttributeError, match="only a view"):
        optimizer.state = {}


SCHEDULES: list[Any] = [
    fo.constant_schedule(0.1),
    fo.linear_schedule(0.1, torch.tensor(0.2), 10),
    fo.polynomial_schedule(0.1, 0.2, 2.0),
    fo.cosine_schedule(0.1, 0.2, 10),
    fo.cosine_decay_schedule(0.1, 10),
    fo.exponential_decay(0.1, 10, 0.5),
    fo.exponential_schedule(0.1, 0.2),
    fo.cosine_onecycle_schedule(10, 0.1),
    fo.warmup_cosine_decay_schedule(0.0, 0.1, 2, 10),
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
def test_a_schedule_is_saved_with_its_group(schedule):
    model = net()
    saved = through_a_file(StatefulOptimizer(model.parameters(), fo.adamw(schedule)).state_dict())
    optimizer = StatefulOptimizer(model.parameters(), fo.adamw(fo.constant_schedule(0.0)))
    optimizer.load_state_dict(saved)
    assert type(optimizer.param_groups[0]["lr"]) is type(schedule)
    assert same(optimizer.param_groups[0]["lr"], schedule)


def through_a_file(saved: Any) -> Any:
    file = io.BytesIO()
    torch.save(saved, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=True)


RESUMED: dict[str, Callable[[], fo.Transform]] = {
    "sgd": lambda: fo.sgd(0.05),
    "momentum": lambda: fo.sgd(0.05, momentum=0.9, dampening=0.1),
    "adamw": lambda: fo.adamw(0.01),
    "adamw/power": lambda: fo.adamw(0.01, debias="power"),
    "clipped and scheduled": lambda: fo.chain(
        fo.clip_by_global_norm(0.5), fo.adamw(fo.cosine_onecycle_schedule(12, 0.05))
    ),
    "lookahead": lambda: fo.lookahead(fo.adamw(0.01), sync_period=3),
    "ranger, scheduled": lambda: fo.ranger(
        fo.join_schedules([fo.linear_schedule(0, 1, 3), fo.constant_schedule(1)], [3])
    ),
    "lamb": lambda: fo.lamb(0.01),
    "larc": lambda: fo.larc(0.01),
    "nadam": lambda: fo.nadam(0.01),
    "tensor": lambda: fo.adamw(torch.tensor(0.01)),
}


@pytest.mark.parametrize("named", [True, False], ids=["named", "positions"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("make", RESUMED.values(), ids=RESUMED)
def test_training_resumes_bit_for_bit(make, dtype, named):
    def start(seed: int) -> tuple[nn.Module, StatefulOptimizer]:
        model = net(dtype, seed)
        return model, StatefulOptimizer(model.named_parameters() if named else model.parameters(), make())

    def train(model: nn.Module, optimizer: StatefulOptimizer, steps: range) -> None:
        for step in steps:
            model[2].bias.requires_grad_(step % 3 > 0)  # pyright: ignore[reportIndexIssue]
            train_step(model, optimizer, step)

    model, optimizer = start(0)
    train(model, optimizer, range(5))
    saved = through_a_file({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    assert all(type(group) is dict for group in saved["optimizer"]["param_groups"])
    train(model, optimizer, range(5, 12))

    again, resumed = start(1)
    train(again, resumed, range(20, 22))  # to have something to overwrite
    again.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    train(again, resumed, range(5, 12))
    assert same(snapshot(optimizer), snapshot(resumed))


@pytest.mark.parametrize("name", ["onecycle", "plateau", "cosine"])
def test_training_resumes_under_a_scheduler(name):
    def start(seed: int) -> tuple[nn.Module, StatefulOptimizer, Any]:
        model = net(seed=seed)
        optimizer = StatefulOptimizer(model.parameters(), fo.adamw(0.01))
        return model, optimizer, SCHEDULERS[name](optimizer)

    def train(model: nn.Module, optimizer: StatefulOptimizer, scheduler: Any, steps: range) -> None:
        for step in steps:
            loss = train_step(model, optimizer, step)
            scheduler.step(*([loss] if name == "plateau" else []))

    first = start(0)
    train(*first, range(10))
    saved = through_a_file([part.state_dict() for part in first])
    train(*first, range(10, 20))
    second = start(1)
    for part, state in zip(second, saved, strict=True):
        part.load_state_dict(state)
    train(*second, range(10, 20))
    assert same(snapshot(first[1]), snapshot(second[1]))
    assert first[2].get_last_lr() == second[2].get_last_lr()


def test_a_state_dict_stays_as_it_was():
    model = net()
    optimizer = StatefulOptimizer(model.parameters(), fo.adamw())
    train_step(model, optimizer, 0)
    saved = optimizer.state_dict()
    before = copy.deepcopy(saved)
    train_step(model, optimizer, 1)
    assert same(saved, before)
    optimizer.load_state_dict(saved)
    train_step(model, optimizer, 1)
    assert same(saved, before)


def test_parameters_are_matched_by_name():
    def start(reverse: bool) -> tuple[nn.Module, StatefulOptimizer]:
        model = net()
        named = list(model.named_parameters())
        return model, StatefulOptimizer(named[::-1] if reverse else named, fo.adamw(0.01))

    (model, optimizer), (other, reversed_) = start(False), start(True)
    train_step(model, optimizer, 0)
    saved = optimizer.state_dict()
    other.load_state_dict(model.state_dict())
    reversed_.load_state_dict(saved)
    assert reversed_.param_groups[0]["param_names"] == [name for name, _ in model.named_parameters()][::-1]
    for m, o in ((model, optimizer), (other, reversed_)):
        train_step(m, o, 1)
    assert same(dict(model.named_parameters()), dict(other.named_parameters()))


def test_names_on_one_side_only_do_not_matter():
    model = net()
    named, positional = (StatefulOptimizer(p, fo.adamw()) for p in (model.named_parameters(), model.parameters()))
    train_step(model, named, 0)
    positional.load_state_dict(named.state_dict())
    assert "param_names" not in positional.param_groups[0]
    named.load_state_dict(positional.state_dict())
    assert named.param_groups[0]["param_names"] == [name for name, _ in model.named_parameters()]
    assert same(*([{**own} for own in o.state.values()] for o in (named, positional)))
    for optimizer in (named, positional):
        train_step(model, optimizer, 1)


def another(model: nn.Module, change: str) -> dict[str, Any]:
    """A state_dict that does not fit ``StatefulOptimizer(model.named_parameters(), fo.adamw())``."""
    tx = {"sgd": fo.sgd(momentum=0.9), "more": fo.chain(fo.ema(0.5), fo.adamw())}.get(change, fo.adamw())
    named = [("x" if change == "names" and n == "0.bias" else n, p) for n, p in model.named_parameters()]
    if change == "groups":
        return StatefulOptimizer([{"params": named[:2]}, {"params": named[2:]}], tx).state_dict()
    saved = StatefulOptimizer(named, tx).state_dict()
    if change == "shape":
        saved["state"][1]["mu.total"] = torch.zeros(3)
    if change == "missing":
        del saved["state"][1]["mu.total"]
    if change == "range":
        saved["param_groups"][0]["lr"] = -1.0
    if change == "schedule":
        saved["param_groups"][0]["lr"] = fo.constant_schedule(0.1)
    return saved


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("sgd", "a saved group has no 'beta1'"),
        ("more", r"nothing here is called \['ema.total', 'ema.weight'\]"),
        ("names", "'0.bias' is only on one side"),
        ("groups", r"groups of \[2, 2\] parameters do not match those here, \[4\]"),
        ("shape", r"parameter '0.bias' needs a 'mu.total' of shape \[8\], but the saved state has one of shape \[3\]"),
        ("missing", r"parameter '0.bias' needs a 'mu.total' of shape \[8\], but the saved state has none"),
        ("range", r"lr must be in \[0, inf\), got -1.0"),
        ("schedule", "has no step counter"),
    ],
)
def test_a_state_dict_that_does_not_fit_changes_nothing(change, message):
    model = net()
    optimizer = StatefulOptimizer(model.named_parameters(), fo.adamw())
    train_step(model, optimizer, 0)
    before = snapshot(optimizer)
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(another(model, change))
    assert same(before, snapshot(optimizer))
    train_step(model, optimizer, 1)


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))], ids=["deepcopy", "pickle"]
)
def test_a_copy_goes_on_alone(duplicate):
    model = net()
    optimizer = StatefulOptimizer(model.named_parameters(), fo.ranger(0.01), betas=(0.8, 0.9))
    for step in range(3):
        train_step(model, optimizer, step)
    other, copied = duplicate((model, optimizer))
    assert [id(p) for p in copied.param_groups[0]["params"]] == [id(p) for p in other.parameters()]
    assert same(snapshot(optimizer), snapshot(copied))
    before = snapshot(optimizer)
    for step in range(3, 10):
        train_step(other, copied, step)
    assert same(before, snapshot(optimizer))
    for step in range(3, 10):
        train_step(model, optimizer, step)
    assert same(snapshot(optimizer), snapshot(copied))
    lr_scheduler.OneCycleLR(copied, 0.1, total_steps=5)
    assert copied.param_groups[0]["betas"][0] == 0.95
    copied.add_param_group({"params": [("new", nn.Parameter(torch.zeros(2)))]})
    assert repr(copied) != repr(optimizer)
