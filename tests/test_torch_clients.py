"""What torch itself has for training loops, around ours and around torch's optimizers: the same losses."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from side_by_side import ATOL, PAIRS, RTOL, data, net, params_close, same, snapshot, train_step
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.nn.functional import cross_entropy
from torch.optim import lr_scheduler, swa_utils
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

import functopt as fo
from functopt import StatefulOptimizer

COMPILE: dict[str, Any] = {"backend": "aot_eager"}
COMPILED: list[Any] = [pytest.param(False, id="eager"), pytest.param(COMPILE, id="compiled")]


def adamw(dtype: torch.dtype = torch.float64, compile: Any = False) -> tuple[Any, Any]:
    """Our AdamW and torch's, each with a model."""
    models = net(dtype), net(dtype)
    return models, (
        StatefulOptimizer(models[0].named_parameters(), fo.adamw(0.01, weight_decay=0.1), compile=compile),
        torch.optim.AdamW(models[1].named_parameters(), 0.01, weight_decay=0.1),
    )


# Schedulers: every one that torch has

EVERY_SCHEDULER: dict[str, Callable[[Any], Any]] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda step: 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 4, gamma=0.3),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [3, 8], gamma=0.5),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.2, total_iters=5),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.1, total_iters=8),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.8),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, total_iters=10, power=2.0),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 6, eta_min=1e-4),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3, T_mult=2),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.05, step_size_up=3, mode="triangular2"),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.05, total_steps=13, three_phase=True),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, factor=0.5, patience=0, cooldown=1),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, total_iters=4), lr_scheduler.CosineAnnealingLR(o, 8)], milestones=[4]
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.1, total_iters=3), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "SWALR": lambda o: swa_utils.SWALR(o, swa_lr=0.002, anneal_epochs=5),
}


def test_no_scheduler_is_forgotten():
    assert {*lr_scheduler.__all__} - {"LRScheduler"} == {*EVERY_SCHEDULER} - {"SWALR"}


def make_pair(compile: Any = False) -> Any:
    models = net(), net()
    groups: list[Any] = [[{"params": m[0].parameters()}, {"params": m[2].parameters(), "lr": 0.03}] for m in models]
    tx = fo.adamw(0.01, debias="power")  # as torch debiases where beta1 is cycled
    return models, (StatefulOptimizer(groups[0], tx, compile=compile), torch.optim.AdamW(groups[1], 0.01))


def drive(name: str, models: Any, optimizers: Any) -> None:
    """Train with both under a scheduler, and compare."""
    schedulers = [EVERY_SCHEDULER[name](optimizer) for optimizer in optimizers]
    numbers = set()
    for step in range(12):
        losses = [train_step(model, o, step) for model, o in zip(models, optimizers, strict=True)]
        torch.testing.assert_close(*losses, rtol=RTOL, atol=ATOL)
        for ours, theirs in zip(*(o.param_groups for o in optimizers), strict=True):
            assert (ours["lr"], ours["betas"]) == (theirs["lr"], theirs["betas"])
            numbers.add((ours["lr"], ours["betas"]))
        for scheduler, loss in zip(schedulers, losses, strict=True):
            scheduler.step(*([loss] if name == "ReduceLROnPlateau" else []))
        assert schedulers[0].get_last_lr() == schedulers[1].get_last_lr()
    params_close(*models)
    assert len(numbers) > 3


@pytest.mark.parametrize("name", EVERY_SCHEDULER)
def test_every_scheduler(name: str):
    drive(name, *make_pair())


def test_every_scheduler_drives_the_same_compiled_graph():
    counter = CompileCounterWithBackend("aot_eager")
    models, optimizers = make_pair({"backend": counter})
    saved = [copy.deepcopy([part.state_dict() for part in parts]) for parts in zip(models, optimizers, strict=True)]
    frames = 0
    for name in EVERY_SCHEDULER:
        for model, optimizer, (weights, state) in zip(models, optimizers, saved, strict=True):
            model.load_state_dict(weights)
            optimizer.load_state_dict(state)
            for group in optimizer.param_groups:
                for left in {*group} & {"initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum", "swa_lr"}:
                    del group[left]  # by the scheduler before
        drive(name, models, optimizers)
        # two in a fresh process with float64: dynamo starts over once
        frames = frames or counter.frame_count
    assert 0 < counter.frame_count == frames <= 2


# Mixed precision


def scaled_step(model: Any, optimizer: Any, scaler: Any, step: int, *, clip: bool = False) -> Tensor:
    x, y = data(step, next(model.parameters()).dtype)
    optimizer.zero_grad()
    loss = 8 * cross_entropy(model(x), y)
    scaler.scale(loss).backward()
    if clip:
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    scaler.step(optimizer)
    scaler.update()
    return loss.detach()


@pytest.mark.parametrize("compile", COMPILED)
@pytest.mark.parametrize("clip", [False, True], ids=["", "clipped"])
def test_grad_scaler(compile: Any, clip: bool):
    models, optimizers = adamw(torch.float32, compile)
    # 2^127 times the loss is beyond float32, so that gradients really are infinite until the scale is small enough
    scalers = [torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=4) for _ in models]
    skipped = taken = 0
    for step in range(30):
        before, scale = snapshot(optimizers[0]), scalers[0].get_scale()
        losses = [
            scaled_step(model, optimizer, scaler, step, clip=clip)
            for model, optimizer, scaler in zip(models, optimizers, scalers, strict=True)
        ]
        # float32 against float32: one rounding of 6e-8 a step, amplified by training
        torch.testing.assert_close(*losses, rtol=1e-5, atol=0.0)
        assert scalers[0].state_dict() == scalers[1].state_dict()
        if any(p.grad.isinf().any() or p.grad.isnan().any() for p in models[0].parameters()):
            assert same(snapshot(optimizers[0]), before)
            assert scalers[0].get_scale() == scale / 2
            skipped += 1
        else:
            assert not same(snapshot(optimizers[0])[1], before[1])
            taken += 1
        assert optimizers[0].param_groups[0]["steps"] == taken
    assert skipped > 4  # when it began, and whenever the scale had grown too far
    assert taken > 15


def test_grad_scaler_on_cuda_as_far_as_a_machine_without_it_can_go(monkeypatch: pytest.MonkeyPatch):
    """With fake tensors: what is launched fits the devices, and the only look at a tensor's value is the scaler's."""
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    for make in (lambda p: StatefulOptimizer(p, fo.adamw()), lambda p: torch.optim.AdamW(p, foreach=False)):
        with FakeTensorMode():
            model = nn.Linear(3, 2, device="cuda")
            optimizer = make(model.parameters())
            scaler = torch.amp.GradScaler("cuda")
            assert scaler.scale(model(torch.ones(4, 3, device="cuda")).sum()).requires_grad
            for p in model.parameters():
                p.grad = torch.ones_like(p)  # backward needs a driver
            scaler.unscale_(optimizer)
            found = scaler._per_optimizer_states[id(optimizer)]["found_inf_per_device"]
            assert [str(device) for device in found] == ["cuda:0"]
            # it asks whether anything was infinite, which a fake tensor does not know; for torch's optimizer too
            with pytest.raises(DataDependentOutputException):
                scaler.step(optimizer)
            optimizer.step()
            for p in model.parameters():
                assert {str(leaf.device) for leaf in optimizer.state[p].values() if leaf.ndim} == {"cuda:0"}
            scaler.update()
            assert scaler._scale is not None
            assert str(scaler._scale.device) == "cuda:0"


# Gradients


@pytest.mark.parametrize("compile", COMPILED)
@pytest.mark.parametrize("set_to_none", [True, False])
def test_accumulated_and_clipped_gradients(compile: Any, set_to_none: bool):
    models, optimizers = adamw(compile=compile)
    for step in range(5):
        norms = []
        for model, optimizer in zip(models, optimizers, strict=True):
            for part in range(3):
                x, y = data(3 * step + part)
                (cross_entropy(model(x), y) / 3).backward()
            norms.append(nn.utils.clip_grad_norm_(model.parameters(), 0.1, foreach=step % 2 == 0))
            nn.utils.clip_grad_value_(model.parameters(), 0.02)
            optimizer.step()
            optimizer.zero_grad(set_to_none=set_to_none)
        torch.testing.assert_close(*norms, rtol=RTOL, atol=ATOL)
        assert norms[0] > 0.1
        params_close(*models)


@pytest.mark.parametrize("compile", COMPILED)
def test_maximize(compile: Any):
    models = net(), net()
    optimizers: Any = (
        StatefulOptimizer(models[0].parameters(), fo.sgd(0.1, 0.9, maximize=True, weight_decay=0.1), compile=compile),
        torch.optim.SGD(models[1].parameters(), 0.1, 0.9, maximize=True, weight_decay=0.1),
    )
    losses: list[float] = []
    while len(losses) < 6:
        both = [train_step(model, optimizer, 0) for model, optimizer in zip(models, optimizers, strict=True)]
        params_close(*models)
        losses.append(float(both[0]))
    assert losses == sorted(losses)


# Averages of the model


@pytest.mark.parametrize("compile", COMPILED)
@pytest.mark.parametrize("kind", ["swa", "ema"])
def test_averaged_models(compile: Any, kind: str):
    models, optimizers = adamw(compile=compile)
    average: dict[str, Any] = {} if kind == "swa" else {"multi_avg_fn": swa_utils.get_ema_multi_avg_fn(0.9)}
    averaged: Any = [swa_utils.AveragedModel(model, **average) for model in models]
    schedulers = [swa_utils.SWALR(o, swa_lr=0.001, anneal_epochs=4, anneal_strategy="linear") for o in optimizers]
    for step in range(10):
        for model, optimizer, mean, scheduler in zip(models, optimizers, averaged, schedulers, strict=True):
            train_step(model, optimizer, step)
            if step > 2:
                mean.update_parameters(model)
                scheduler.step()
    params_close(*averaged)
    params_close(*models)
    assert averaged[0].n_averaged == 7
    # the averages are not those of one buffer that goes on changing
    assert not torch.equal(averaged[0].module[0].weight, models[0][0].weight)
    before = copy.deepcopy(averaged[0].state_dict())
    train_step(models[0], optimizers[0], 10)
    assert same(averaged[0].state_dict(), before)


# Hooks and closures


@pytest.mark.parametrize("compile", COMPILED)
def test_step_hooks_that_change_the_step(compile: Any):
    models, optimizers = adamw(compile=compile)
    seen: list[list[Any]] = [[], []]
    for log, model, optimizer in zip(seen, models, optimizers, strict=True):

        def before(opt: Any, args: Any, kwargs: Any, log: Any = log, model: Any = model) -> Any:
            log.append(("before", len(args), sorted(kwargs)))
            for p in model.parameters():
                p.grad.mul_(0.5)
            return args, {**kwargs, "closure": lambda: 7.0}

        def after(opt: Any, args: Any, kwargs: Any, log: Any = log, model: Any = model) -> None:
            log.append(("after", sorted(kwargs)))
            with torch.no_grad():
                model[0].weight.clamp_(-0.1, 0.1)

        optimizer.register_step_pre_hook(before)
        optimizer.register_step_post_hook(after)
    for step in range(5):
        for model, optimizer in zip(models, optimizers, strict=True):
            train_step(model, optimizer, step)
            assert optimizer.step() == 7.0
        params_close(*models)
    assert seen[0] == seen[1]
    assert models[0][0].weight.abs().max() <= 0.1


def test_hooks_of_all_optimizers():
    calls = []
    handles = [
        register_optimizer_step_pre_hook(lambda o, args, kwargs: calls.append(("pre", o))),
        register_optimizer_step_post_hook(lambda o, args, kwargs: calls.append(("post", o))),
    ]
    model = net()
    optimizer = StatefulOptimizer(model.parameters(), fo.sgd())
    try:
        train_step(model, optimizer, 0)
    finally:
        for handle in handles:
            handle.remove()
    train_step(model, optimizer, 1)
    assert calls == [("pre", optimizer), ("post", optimizer)]


def test_state_dict_hooks_go_in_torchs_order():
    logs = []
    for make in PAIRS["adamw"]:
        model, log = net(), []
        optimizer = make(model.parameters())
        train_step(model, optimizer, 0)
        for name in ("a", "b"):
            optimizer.register_state_dict_pre_hook(lambda o, n=name, log=log: log.append(f"save {n}"))
            optimizer.register_state_dict_post_hook(
                lambda o, d, n=name, log=log: (log.append(f"saved {n}"), d.setdefault("order", []).append(n))[-1],
                prepend=True,
            )
            optimizer.register_load_state_dict_pre_hook(
                lambda o, d, n=name, log=log: log.append(f"load {n} {'order' in d}"), prepend=True
            )
            optimizer.register_load_state_dict_post_hook(
                lambda o, n=name, log=log: log.append(f"loaded {n} {o.param_groups[0]['lr']}")
            )
        saved = optimizer.state_dict()
        assert saved["order"] == ["b", "a"]
        saved["param_groups"][0]["lr"] = 0.5
        optimizer.load_state_dict(saved)
        logs.append(log)
    assert logs[0] == logs[1]
    assert len(logs[0]) == 8


@pytest.mark.parametrize("compile", COMPILED)
def test_closures(compile: Any):
    models, optimizers = adamw(compile=compile)
    for step in range(4):
        losses = []
        for model, optimizer in zip(models, optimizers, strict=True):

            def closure(model: Any = model, optimizer: Any = optimizer, step: int = step) -> Tensor:
                optimizer.zero_grad()
                x, y = data(step)
                loss = cross_entropy(model(x), y)
                loss.backward()
                return loss

            losses.append(optimizer.step(closure))
        torch.testing.assert_close(*losses, rtol=RTOL, atol=ATOL)
        params_close(*models)


def test_a_scheduler_before_the_first_step_warns_as_with_torch():
    for optimizer in adamw()[1]:
        scheduler = lr_scheduler.StepLR(optimizer, 1)
        with pytest.warns(UserWarning, match="before `optimizer.step\\(\\)`"):
            scheduler.step()
    models, optimizers = adamw()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for model, optimizer in zip(models, optimizers, strict=True):
            scheduler = lr_scheduler.StepLR(optimizer, 1)
            train_step(model, optimizer, 0)
            scheduler.step()
