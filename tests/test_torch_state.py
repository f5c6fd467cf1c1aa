"""Checkpoints of torch.optim.SGD, Adam, AdamW and RMSprop, to and from ours, and training that goes on in both."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from side_by_side import net, same, snapshot, train_step
from torch import Tensor, nn
from torch.optim import lr_scheduler

import functopt as fo
from functopt import StatefulOptimizer, from_torch_state_dict, to_torch_state_dict

# The equations are the same, the order of operations is not: a few units in the last place of float64 at each of the
# dozen steps after the conversion.
RTOL, ATOL = 1e-12, 1e-14

Optimizer = torch.optim.Optimizer
Case = tuple[Callable[[], fo.Transform], type[Optimizer], dict[str, Any]]

CASES: dict[str, Case] = {
    "sgd": (lambda: fo.sgd(0.1, weight_decay=0.01), torch.optim.SGD, {"lr": 0.1, "weight_decay": 0.01}),
    "sgd/momentum": (
        lambda: fo.sgd(0.05, momentum=0.9, dampening=0.3, weight_decay=0.01),
        torch.optim.SGD,
        {"lr": 0.05, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.01},
    ),
    "sgd/nesterov": (
        lambda: fo.sgd(0.05, momentum=0.9, nesterov=True, maximize=True),
        torch.optim.SGD,
        {"lr": 0.05, "momentum": 0.9, "nesterov": True, "maximize": True},
    ),
    "adam": (lambda: fo.adam(weight_decay=0.1), torch.optim.Adam, {"weight_decay": 0.1}),
    "adam/maximize": (
        lambda: fo.adam(beta1=0.5, maximize=True),
        torch.optim.Adam,
        {"betas": (0.5, 0.999), "maximize": True},
    ),
    "adam/decoupled": (
        lambda: fo.adamw(weight_decay=0.1),
        torch.optim.Adam,
        {"weight_decay": 0.1, "decoupled_weight_decay": True},
    ),
    "adamw": (lambda: fo.adamw(), torch.optim.AdamW, {}),
    "adamw/power": (lambda: fo.adamw(debias="power"), torch.optim.AdamW, {}),
    "adamw/beta1=0": (lambda: fo.adamw(beta1=0.0, beta2=0.9), torch.optim.AdamW, {"betas": (0.0, 0.9)}),
    "rmsprop": (lambda: fo.rmsprop(), torch.optim.RMSprop, {}),
    "rmsprop/centered": (
        lambda: fo.rmsprop(decay=0.9, momentum=0.5, centered=True, weight_decay=0.01, maximize=True),
        torch.optim.RMSprop,
        {"alpha": 0.9, "momentum": 0.5, "centered": True, "weight_decay": 0.01, "maximize": True},
    ),
}


@pytest.fixture(params=CASES.values(), ids=[*CASES])
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


def groups(model: Any, *, named: bool = False, **hypers: Any) -> list[dict[str, Any]]:
    """Two groups, of which the second has numbers of its own."""
    own = [
        list(layer.named_parameters(prefix=str(i)) if named else layer.parameters()) for i, layer in enumerate(model)
    ]
    return [{"params": own[0]}, {"params": own[2], "lr": 0.002, "weight_decay": 0.02, **hypers}]


def make(case: Case, model: Any, *, theirs: bool, named: bool = False, start: bool = False) -> Any:
    tx, torch_class, options = case
    made: Any = torch_class
    params: Any = groups(model, named=named)
    if start:  # with other numbers than those of the checkpoint, except for what is structure
        for group in params:
            group["lr"], group["weight_decay"] = 0.5, 0.25
    return made(params, **options) if theirs else StatefulOptimizer(params, tx())


def train(model: Any, optimizer: Optimizer, steps: range, *, some: bool = False) -> None:
    for step in steps:
        if some:
            model[0].bias.requires_grad_(step % 3 > 0)
            model[2].weight.requires_grad_(False)
        train_step(model, optimizer, step)
    model.requires_grad_(True)


def close(ours: Any, theirs: Any) -> None:
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=RTOL, atol=ATOL, msg=lambda m, name=name: f"{name}: {m}")


def through_a_file(saved: Any) -> Any:
    file = io.BytesIO()
    torch.save(saved, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=True)


@pytest.mark.parametrize("named", [True, False], ids=["named", "positions"])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 40])
def test_from_torch(case: Case, steps: int, named: bool):
    theirs, ours = net(), net(seed=1)
    reference = make(case, theirs, theirs=True, named=named)
    # some parameters have no gradient at some or all steps
    train(theirs, reference, range(steps), some=True)
    optimizer = make(case, ours, theirs=False, named=named, start=True)
    train(ours, optimizer, range(20, 22))  # to have something to overwrite
    ours.load_state_dict(theirs.state_dict())
    from_torch_state_dict(optimizer, through_a_file(reference.state_dict()))
    assert [group["lr"] for group in optimizer.param_groups] == [group["lr"] for group in reference.param_groups]
    for model, o in ((theirs, reference), (ours, optimizer)):
        train(model, o, range(steps, steps + 12))
    close(ours, theirs)


@pytest.mark.parametrize("named", [True, False], ids=["named", "positions"])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 40])
def test_to_torch(case: Case, steps: int, named: bool):
    ours, theirs = net(), net(seed=1)
    optimizer = make(case, ours, theirs=False, named=named)
    train(ours, optimizer, range(steps), some=True)
    reference = make(case, theirs, theirs=True, named=named, start=True)
    train(theirs, reference, range(20, 22))
    theirs.load_state_dict(ours.state_dict())
    saved = through_a_file(to_torch_state_dict(optimizer, type(reference)))
    assert all(type(group) is dict for group in saved["param_groups"])
    reference.load_state_dict(saved)
    for model, o in ((theirs, reference), (ours, optimizer)):
        train(model, o, range(steps, steps + 12))
    close(ours, theirs)


@pytest.mark.parametrize("steps", [1, 7, 100])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_what_torch_saves_comes_back_bit_for_bit(case: Case, dtype: torch.dtype, steps: int):
    model = net(dtype)
    reference, optimizer = make(case, model, theirs=True), make(case, model, theirs=False)
    train(model, reference, range(steps), some=True)
    saved = reference.state_dict()
    from_torch_state_dict(optimizer, saved)
    back = to_torch_state_dict(optimizer, type(reference))
    assert same(through_a_file(back), through_a_file(saved))
    reference.load_state_dict(back)


def test_what_we_save_comes_back_bit_for_bit_but_for_rounded_weights(case: Case):
    model = net()
    optimizer, other = make(case, model, theirs=False), make(case, model, theirs=False, start=True)
    train(model, optimizer, range(30), some=True)
    from_torch_state_dict(other, to_torch_state_dict(optimizer))
    powers = "count" in optimizer.state[model[0].weight]
    for p in model.parameters():
        for name, value in optimizer.state[p].items():
            if name == "trace.weight" and case[1] is torch.optim.SGD:
                # torch does not keep what it would follow from; only whether it is 0 matters
                assert bool(other.state[p][name]) == bool(value)
            elif name.endswith("weight"):
                torch.testing.assert_close(other.state[p][name], value, rtol=1e-13, atol=0.0)
            else:
                assert torch.equal(other.state[p][name], value), name
    if powers or case[1] is torch.optim.SGD:  # whose bias correction does not read the weights
        again, before = net(), snapshot(optimizer)
        again.load_state_dict(model.state_dict())
        resumed = make(case, again, theirs=False)
        from_torch_state_dict(resumed, to_torch_state_dict(optimizer))
        train(model, optimizer, range(30, 40))
        train(again, resumed, range(30, 40))
        assert same(dict(model.named_parameters()), dict(again.named_parameters()))
        assert not same(before, snapshot(optimizer))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.95, 0.9999), (0.5, 0.9), (0.0, 0.99)])
def test_the_number_of_steps_is_that_of_torch_as_long_as_it_matters(betas: tuple[float, float], dtype: torch.dtype):
    p = nn.Parameter(torch.zeros(1, dtype=dtype))
    optimizer = StatefulOptimizer([p], fo.adam(), betas=betas)
    for step in range(1, 1501):
        p.grad = torch.ones_like(p)
        optimizer.step()
        if step < 20 or step % 97 == 0:
            saved = to_torch_state_dict(optimizer)
            assert saved["state"][0]["step"] == step
            optimizer.param_groups[0]["steps"] = 0  # so that it has to follow from the weights
            found = to_torch_state_dict(optimizer)["state"][0]["step"]
            optimizer.param_groups[0]["steps"] = step
            left = betas[1] ** step
            assert abs(betas[1] ** float(found) - left) <= 8 * torch.finfo(dtype).eps / (1 - betas[1])
            if left > 1e-2:
                assert found == step


def test_a_scheduler_goes_on_in_the_other_optimizer():
    models = net(), net()
    theirs = torch.optim.SGD(models[1].parameters(), 0.1, momentum=0.9)
    schedulers: list[Any] = [lr_scheduler.OneCycleLR(theirs, 0.2, total_steps=31)]
    for step in range(10):
        train_step(models[1], theirs, step)
        schedulers[0].step()
    models[0].load_state_dict(models[1].state_dict())
    ours = StatefulOptimizer(models[0].parameters(), fo.sgd(0.3, momentum=0.5))
    schedulers.append(lr_scheduler.OneCycleLR(ours, 0.2, total_steps=31))
    schedulers[1].load_state_dict(schedulers[0].state_dict())
    from_torch_state_dict(ours, theirs.state_dict())
    assert ours.param_groups[0]["initial_lr"] == theirs.param_groups[0]["initial_lr"]
    for step in range(10, 30):
        for model, optimizer, scheduler in zip(models, (ours, theirs), schedulers[::-1], strict=True):
            train_step(model, optimizer, step)
            scheduler.step()
        assert ours.param_groups[0]["momentum"] == theirs.param_groups[0]["momentum"]
        close(*models)


def test_betas_that_change_go_on_by_powers_and_are_refused_by_weights():
    models = net(), net()
    forms = (fo.adamw(debias="power"), fo.adamw())
    optimizers = [StatefulOptimizer(model.parameters(), tx) for model, tx in zip(models, forms, strict=True)]
    for model, optimizer in zip(models, optimizers, strict=True):
        for step in range(5):
            optimizer.param_groups[0]["betas"] = (0.9 - 0.1 * step, 0.99)
            train_step(model, optimizer, step)
    before = snapshot(optimizers[1])
    with pytest.raises(ValueError, match=r"parameter 0: no number of steps with the betas .* debias='power'"):
        to_torch_state_dict(optimizers[1])
    assert same(before, snapshot(optimizers[1]))
    theirs = net()
    theirs.load_state_dict(models[0].state_dict())
    reference = torch.optim.AdamW(theirs.parameters())
    reference.load_state_dict(to_torch_state_dict(optimizers[0]))
    for step in range(5, 15):
        for model, optimizer in ((models[0], optimizers[0]), (theirs, reference)):
            optimizer.param_groups[0]["betas"] = (0.4 + 0.03 * step, 0.99)
            train_step(model, optimizer, step)
    close(models[0], theirs)


def test_tensors_as_lr():
    models = net(), net()
    theirs = torch.optim.AdamW(models[1].parameters(), lr=torch.tensor(0.01, dtype=torch.float64), foreach=False)
    train(models[1], theirs, range(3))
    models[0].load_state_dict(models[1].state_dict())
    ours = StatefulOptimizer(models[0].parameters(), fo.adamw())
    from_torch_state_dict(ours, theirs.state_dict())
    lr = ours.param_groups[0]["lr"]
    assert isinstance(lr, Tensor)
    assert lr is not theirs.param_groups[0]["lr"]
    again = net()
    again.load_state_dict(models[1].state_dict())
    back = torch.optim.AdamW(again.parameters())
    back.load_state_dict(to_torch_state_dict(ours))
    assert torch.equal(back.param_groups[0]["lr"], lr)
    assert back.param_groups[0]["lr"] is not lr
    for optimizer in (ours, theirs, back):
        optimizer.param_groups[0]["lr"].mul_(0.5)
    for model, optimizer in ((models[0], ours), (models[1], theirs), (again, back)):
        train(model, optimizer, range(3, 9))
    close(*models)
    close(again, models[1])


def test_adam_without_decay_is_adamw_without_decay():
    for ours, theirs in ((fo.adam, torch.optim.AdamW), (fo.adamw, torch.optim.Adam)):
        models = net(), net()
        optimizer = StatefulOptimizer(models[0].parameters(), ours(weight_decay=0.0))
        train(models[0], optimizer, range(3))
        models[1].load_state_dict(models[0].state_dict())
        reference = theirs(models[1].parameters())
        reference.load_state_dict(to_torch_state_dict(optimizer, theirs))
        from_torch_state_dict(optimizer, reference.state_dict())
        for model, o in zip(models, (optimizer, reference), strict=True):
            train(model, o, range(3, 9))
        close(*models)


def test_how_torch_runs_does_not_matter():
    every: list[dict[str, Any]] = [{"foreach": True}, {"fused": True}, {"differentiable": False, "capturable": False}]
    for options in every:
        models = net(), net()
        reference = torch.optim.AdamW(models[1].parameters(), **options)
        train(models[1], reference, range(3))
        models[0].load_state_dict(models[1].state_dict())
        optimizer = StatefulOptimizer(models[0].parameters(), fo.adamw())
        from_torch_state_dict(optimizer, reference.state_dict())
        for model, o in zip(models, (optimizer, reference), strict=True):
            train(model, o, range(3, 9))
        close(*models)
        assert "fused" not in optimizer.param_groups[0]


def test_a_checkpoint_of_a_capturable_optimizer():
    model = net()
    saved = torch.optim.AdamW(model.parameters()).state_dict()
    saved["param_groups"][0]["capturable"] = True
    saved["state"] = {
        i: {"step": torch.tensor([3.0]), "exp_avg": torch.ones_like(p), "exp_avg_sq": torch.ones_like(p)}
        for i, p in enumerate(model.parameters())
    }
    optimizer = StatefulOptimizer(model.parameters(), fo.adamw())
    from_torch_state_dict(optimizer, saved)
    assert optimizer.state[model[0].weight]["nu.weight"] == 1 - 0.999**3
    assert optimizer.param_groups[0]["steps"] == 3


def test_low_precision_keeps_what_torch_had():
    models = net(torch.bfloat16), net(torch.bfloat16)
    theirs = torch.optim.AdamW(models[1].parameters(), lr=0.01)
    train(models[1], theirs, range(3))
    ours = StatefulOptimizer(models[0].parameters(), fo.adamw())
    from_torch_state_dict(ours, theirs.state_dict())
    for p, q in zip(*(m.parameters() for m in models), strict=True):
        assert ours.state[p]["nu.total"].dtype == torch.float32
        assert torch.equal(ours.state[p]["nu.total"], theirs.state[q]["exp_avg_sq"].float())
    assert same(to_torch_state_dict(ours)["state"], theirs.state_dict()["state"])


def test_compiled():
    models = net(), net()
    theirs = torch.optim.AdamW(models[1].parameters(), 0.01)
    train(models[1], theirs, range(3))
    models[0].load_state_dict(models[1].state_dict())
    ours = StatefulOptimizer(models[0].parameters(), fo.adamw(), compile={"backend": "aot_eager"})
    from_torch_state_dict(ours, theirs.state_dict())
    for model, optimizer in zip(models, (ours, theirs), strict=True):
        train(model, optimizer, range(3, 9))
    close(*models)
    theirs.load_state_dict(to_torch_state_dict(ours))
    for model, optimizer in zip(models, (ours, theirs), strict=True):
        train(model, optimizer, range(9, 15))
    close(*models)


def test_marks():
    model = net()
    theirs = torch.optim.SGD(groups(model, momentum=0.9), 0.1, momentum=0.9)
    ours = StatefulOptimizer(groups(model), fo.sgd(0.1, momentum=0.9))
    ours.mark([model[0].bias], do_wd=False)  # its group does not decay
    ours.mark([model[2].bias], force_train=True)
    train(model, theirs, range(2))
    from_torch_state_dict(ours, theirs.state_dict())
    assert ours.state[model[0].bias]["do_wd"] is False
    assert ours.state[model[2].bias]["force_train"] is True
    assert torch.equal(ours.state[model[2].bias]["trace.total"], theirs.state[model[2].bias]["momentum_buffer"])
    assert same(to_torch_state_dict(ours)["state"], theirs.state_dict()["state"])
    ours.mark([model[2].bias], do_wd=False)
    before = snapshot(ours)
    for convert in (to_torch_state_dict, lambda o: from_torch_state_dict(o, theirs.state_dict())):
        with pytest.raises(ValueError, match="parameter 3 has the mark do_wd=False, which torch does not have"):
            convert(ours)
    assert same(before, snapshot(ours))


# What cannot be converted


def adam(**changes: Any) -> Any:
    """The state of a torch.optim.AdamW after a step, changed."""
    model = net()
    optimizer = torch.optim.AdamW(model.parameters())
    train_step(model, optimizer, 0)
    saved = optimizer.state_dict()
    for name, value in changes.items():
        part = saved["state"][1] if name in saved["state"][1] or name == "max_exp_avg_sq" else saved["param_groups"][0]
        part[name] = value
        if value is ...:
            del part[name]
    return saved


def another(make: Callable[[Any], Optimizer]) -> Any:
    model = net()
    optimizer = make(model.parameters())
    train_step(model, optimizer, 0)
    return optimizer.state_dict()


@pytest.mark.parametrize(
    ("tx", "saved", "error", "message"),
    [
        (fo.adamw(), lambda: adam(amsgrad=True), ValueError, "group 0 has amsgrad=True, but this .* amsgrad=False"),
        (fo.adamw(), lambda: adam(max_exp_avg_sq=torch.ones(8)), ValueError, r"differs .* in \['max_exp_avg_sq'\]"),
        (fo.adamw(), lambda: adam(maximize=True), ValueError, "maximize=True, but this optimizer computes maximize=F"),
        (
            fo.adam(),
            lambda: adam(),
            ValueError,
            "decoupled_weight_decay=True, but this .* decoupled_weight_decay=False",
        ),
        (fo.adamw(), lambda: adam(lr=-1.0), ValueError, r"lr must be in \[0, inf\), got -1.0"),
        (fo.adamw(), lambda: adam(lr="0.1"), TypeError, "lr is a str"),
        (fo.adamw(), lambda: adam(betas=(0.9, 1.0)), ValueError, r"beta2 must be in \[0, 1\), got 1.0"),
        (fo.adamw(), lambda: adam(betas=0.9), TypeError, "betas is 0.9, expected two numbers"),
        (fo.adamw(), lambda: adam(eps=...), ValueError, "group 0 has no 'eps', so it is not from torch.optim.AdamW"),
        (fo.adamw(), lambda: adam(exp_avg=torch.ones(3)), ValueError, r"needs a 'mu.total' of shape \[8\]"),
        (fo.adamw(), lambda: adam(exp_avg=1.0), TypeError, "parameter 1: exp_avg is a float, expected a tensor"),
        (fo.adamw(), lambda: adam(exp_avg=...), ValueError, r"differs from torch.optim.AdamW in \['exp_avg'\]"),
        (fo.adamw(), lambda: adam(step=torch.tensor(-1.0)), ValueError, "step is -1.0, expected a number of steps"),
        (fo.adamw(), lambda: adam(step=torch.tensor(0.5)), ValueError, "step is 0.5, expected a number of steps"),
        (fo.adamw(), lambda: adam(step="3"), TypeError, "step is a str"),
        (fo.adamw(), lambda: {**adam(), "state": {7: {}}}, ValueError, r"the state has entries \[7\] that no group"),
        (fo.adamw(), list, TypeError, "expected a state_dict, got a list"),
        (fo.adamw(), dict, TypeError, "has no 'state' that is a dict"),
        (fo.adamw(), lambda: another(torch.optim.SGD), ValueError, "group 0 has no 'betas'"),
        (fo.adamw(), lambda: another(torch.optim.NAdam), ValueError, "group 0 has no 'amsgrad'"),
        (fo.adamw(), lambda: another(lambda p: torch.optim.AdamW(list(p)[:2])), ValueError, r"groups of \[2\]"),
        (fo.sgd(), lambda: adam(), ValueError, "group 0 has no 'momentum'"),
        (
            fo.sgd(),
            lambda: another(lambda p: torch.optim.SGD(p, momentum=0.9)),
            ValueError,
            "momentum=0.9; make the optimizer with a momentum other than 0",
        ),
        (
            fo.sgd(momentum=0.9),
            lambda: another(lambda p: torch.optim.SGD(p, momentum=0.9, nesterov=True)),
            ValueError,
            "nesterov=True, but this optimizer computes nesterov=False",
        ),
        (
            fo.sgd(momentum=0.9),
            lambda: another(lambda p: torch.optim.SGD(p, dampening=0.5)),
            ValueError,
            "momentum=0 and dampening=0.5: torch leaves the dampening out",
        ),
        (fo.rmsprop(), lambda: another(lambda p: torch.optim.RMSprop(p, centered=True)), ValueError, "centered=True"),
        (fo.lion(), lambda: adam(), ValueError, "none of torch's optimizers; expected fo.sgd, fo.adam"),
        (
            fo.adamw(fo.constant_schedule(0.1)),
            lambda: adam(),
            ValueError,
            "Its hypers are schedules, which a torch optimizer does not have",
        ),
        (fo.adamw(nesterov=True), lambda: adam(), ValueError, "torch.optim.AdamW has no nesterov=True"),
        (fo.adamw(mask=lambda p: True), lambda: adam(), ValueError, "torch.optim.AdamW has no mask="),
    ],
)
def test_a_torch_checkpoint_that_does_not_fit_changes_nothing(tx: Any, saved: Any, error: Any, message: str):
    model = net()
    optimizer = StatefulOptimizer(model.parameters(), tx)
    train_step(model, optimizer, 0)
    before = snapshot(optimizer)
    with pytest.raises(error, match=message):
        from_torch_state_dict(optimizer, saved())
    assert same(before, snapshot(optimizer))


@pytest.mark.parametrize(
    ("tx", "hypers", "torch_class", "message"),
    [
        (fo.nadam(), {}, None, "none of torch's optimizers"),
        (fo.adamw(fo.constant_schedule(0.1)), {}, None, "Its hypers are schedules"),
        (fo.adamw(), {}, torch.optim.SGD, "this optimizer is torch.optim.AdamW, whose state SGD cannot go on with"),
        (fo.adam(weight_decay=0.1), {}, torch.optim.AdamW, "whose state AdamW cannot go on with"),
        (fo.sgd(), {"lr": dict.fromkeys(range(4), 0.1)}, None, "lr is a dict; torch has one number for each group"),
        (fo.adamw(), {"eps_root": 1e-8}, None, "eps_root=1e-08, which torch.optim.AdamW does not have"),
        (fo.rmsprop(momentum=0.9), {"dampening": 0.5}, None, "has dampening or nesterov"),
        (fo.sgd(maximize=True), {"step_size": -2.0}, None, "step_size=-2.0, which torch.optim.SGD does not have"),
        (fo.sgd(momentum=0.9), {"momentum": 0.0, "dampening": 0.5}, None, "torch leaves the dampening out"),
        (fo.sgd(momentum=0.9, decoupled=True), {}, None, "none of torch's optimizers"),
        (fo.rmsprop(momentum=0.9, momentum_of="gradient"), {}, None, "none of torch's optimizers"),
    ],
)
def test_what_torch_does_not_have_is_refused(tx: Any, hypers: Any, torch_class: Any, message: str):
    optimizer = StatefulOptimizer(net().parameters(), tx, **hypers)
    with pytest.raises(ValueError, match=message):
        to_torch_state_dict(optimizer, torch_class)
