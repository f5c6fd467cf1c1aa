"""StatefulOptimizer: steps, schedulers, groups and missing gradients, side by side with torch's own optimizers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from side_by_side import ATOL, PAIRS, RTOL, SCHEDULERS, data, net, params_close, same, snapshot, train_step
from test_seeds import SPEC, array, close, data_of, fastai, steps_of
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import lr_scheduler

import functopt as fo
from functopt import StatefulOptimizer, tree


@pytest.fixture(params=PAIRS)
def pair(request):
    return PAIRS[request.param]


# Schedulers


def momentum_of(group: dict[str, Any]) -> float:
    return group["momentum"] if "momentum" in group else group["betas"][0]


@pytest.mark.parametrize("schedule", SCHEDULERS.values(), ids=SCHEDULERS)
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_schedulers_drive_it_as_they_drive_torchs_optimizers(name, schedule):
    models = net(), net()
    optimizers = [make(model.parameters()) for make, model in zip(PAIRS[name], models, strict=True)]
    schedulers = [schedule(optimizer) for optimizer in optimizers]
    momenta = set()
    for step in range(30):
        losses = [train_step(model, o, step) for model, o in zip(models, optimizers, strict=True)]
        ours, theirs = (o.param_groups[0] for o in optimizers)
        assert (ours["lr"], momentum_of(ours)) == (theirs["lr"], momentum_of(theirs))
        momenta.add(momentum_of(ours))
        params_close(*models)
        for scheduler in schedulers:
            scheduler.step(*(losses[1:] if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau) else []))
        assert schedulers[0].get_last_lr() == schedulers[1].get_last_lr()
    assert len(momenta) > 5 if schedule in (SCHEDULERS["onecycle"], SCHEDULERS["cyclic"]) else len(momenta) == 1


def test_a_scheduler_sets_each_groups_learning_rate():
    models = net(), net()
    groups = [[{"params": m[0].parameters(), "lr": 0.3}, {"params": m[2].parameters()}] for m in models]
    ours = StatefulOptimizer(groups[0], fo.sgd(0.1))
    theirs = torch.optim.SGD(groups[1], 0.1)
    schedulers = [lr_scheduler.ExponentialLR(o, 0.5) for o in (ours, theirs)]
    for step in range(4):
        for model, optimizer, scheduler in zip(models, (ours, theirs), schedulers, strict=True):
            train_step(model, optimizer, step)
            scheduler.step()
        params_close(*models)
    assert [group["lr"] for group in ours.param_groups] == [0.3 / 16, 0.1 / 16]


def test_a_cycled_beta1_is_debiased_by_its_weights():
    """By default, where torch uses powers of the present beta: the same for a constant beta1, not for a cycled one."""
    for cycle, equal in ((False, True), (True, False)):
        models = net(), net()
        optimizers = [StatefulOptimizer(models[0].parameters(), fo.adamw()), torch.optim.AdamW(models[1].parameters())]
        schedulers = [lr_scheduler.OneCycleLR(o, 0.05, total_steps=11, cycle_momentum=cycle) for o in optimizers]
        for step in range(10):
            for model, optimizer, scheduler in zip(models, optimizers, schedulers, strict=True):
                train_step(model, optimizer, step)
                scheduler.step()
        ours, theirs = (torch.cat([p.flatten() for p in m.parameters()]) for m in models)
        assert torch.allclose(ours, theirs, rtol=RTOL, atol=ATOL) == equal


def test_a_scheduler_writes_into_the_groups_own_tensor():
    lr = torch.tensor(0.1, dtype=torch.float64)
    tx, models = fo.sgd(lr, momentum=0.9), (net(), net())
    ours = StatefulOptimizer([{"params": models[0][0].parameters()}, {"params": models[0][2].parameters()}], tx)
    theirs = torch.optim.SGD(models[1].parameters(), 0.1, momentum=0.9)
    schedulers = [lr_scheduler.StepLR(o, 2, gamma=0.5) for o in (ours, theirs)]
    for step in range(6):
        for model, optimizer, scheduler in zip(models, (ours, theirs), schedulers, strict=True):
            train_step(model, optimizer, step)
            scheduler.step()
        params_close(*models)
    assert lr == 0.1
    assert tx.hypers["lr"] is lr
    assert [float(group["lr"]) for group in ours.param_groups] == [0.0125, 0.0125]


def test_betas_are_another_way_to_write_beta1_and_beta2():
    model = net()
    optimizer = StatefulOptimizer(model.parameters(), fo.adam(), betas=(0.8, 0.99))
    (group,) = optimizer.param_groups
    assert optimizer.defaults["betas"] == group["betas"] == group.get("betas") == (0.8, 0.99)
    assert "betas" in group
    group.update(betas=(0.7, 0.98))
    assert (group["beta1"], group["beta2"]) == (0.7, 0.98)
    group["beta1"] = 0.6
    assert group.setdefault("betas", (0.0, 0.0)) == (0.6, 0.98)
    assert "betas" not in list(group)
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "betas": (0.1, 0.2)})
    assert optimizer.param_groups[1]["beta1"] == 0.1
    assert "betas" not in StatefulOptimizer(model.parameters(), fo.sgd()).param_groups[0]


def test_hypers_changed_by_hand_are_those_of_the_step():
    models = net(), net()
    ours, theirs = (make(m.parameters()) for make, m in zip(PAIRS["sgd"], models, strict=True))
    for step in range(5):
        changed: dict[str, Any] = {"lr": 0.1 / (step + 1), "momentum": 0.5 + 0.1 * step}
        theirs.param_groups[0].update(changed)
        ours.param_groups[0].update({k: torch.tensor(v, dtype=torch.float64) for k, v in changed.items()})
        for model, optimizer in zip(models, (ours, theirs), strict=True):
            train_step(model, optimizer, step)
        params_close(*models)


@pytest.mark.parametrize(
    "case", [c for c in SPEC["cases"] if c["name"].startswith("B/groups/")], ids=lambda c: c["name"]
)
def test_groups_of_the_seeds(case):
    leaves, grads, init = data_of(case)
    tx = fastai({**case, "resolved": case["resolved"][:1]})
    params = {leaf: nn.Parameter(init[leaf].clone()) for leaf in leaves}
    names = {"lr": "lr", "wd": "weight_decay", "mom": "momentum" if "momentum" in tx.hypers else "beta1"}
    groups = [
        {"params": [(leaf, params[leaf]) for leaf in group], **{ours: hypers[name] for name, ours in names.items()}}
        for group, hypers in zip(case["groups"], case["resolved"], strict=True)
    ]
    optimizer = StatefulOptimizer(groups, tx)
    rows = {leaf: [init[leaf]] for leaf in leaves}
    for step in range(steps_of(case)):
        for leaf in leaves:
            params[leaf].grad = grads[leaf][step].clone()  # pyright: ignore[reportArgumentType]
        optimizer.step()
        for leaf in leaves:
            rows[leaf].append(params[leaf].detach().clone())
    for leaf in leaves:
        close(torch.stack(rows[leaf]), array(f"{case['name']}/params/{leaf}"), leaf)


# Gradients that are missing, or zero


def test_missing_gradients_step_by_step(pair):
    """A parameter that sits a step out has its own step count, and dampening its own first step."""
    missing = {"0.weight": {0, 3}, "0.bias": {0, 1, 2}, "2.weight": {2, 3, 6}, "2.bias": {*range(8)}}
    models = net(), net()
    optimizers = [make(m.parameters()) for make, m in zip(pair, models, strict=True)]
    for step in range(8):
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            x, y = data(step)
            cross_entropy(model(x), y).backward()
            for name, param in model.named_parameters():
                if step in missing[name]:
                    param.grad = None
            params = dict(model.named_parameters())
            ours = isinstance(optimizer, StatefulOptimizer)
            left = {name: p for name, p in params.items() if step in missing[name] and ours}
            before = copy.deepcopy({name: (p, {**optimizer.state[p]}) for name, p in left.items()})
            optimizer.step()
            assert same(before, {name: (p, {**optimizer.state[p]}) for name, p in left.items()})
        params_close(*models)


def test_a_parameter_that_never_has_a_gradient():
    models = net(), net()
    for model in models:
        model[0].bias.requires_grad_(False)
    ours, theirs = (make(m.parameters()) for make, m in zip(PAIRS["adamw"], models, strict=True))
    start = models[0][0].bias.clone()
    for step in range(5):
        for model, optimizer in zip(models, (ours, theirs), strict=True):
            train_step(model, optimizer, step)
        params_close(*models)
    assert torch.equal(models[0][0].bias, start)


def test_a_step_without_any_gradient_changes_nothing():
    optimizer = StatefulOptimizer(net().parameters(), fo.adamw(fo.cosine_decay_schedule(0.1, 10)))
    before = snapshot(optimizer)
    assert optimizer.step() is None
    assert same(before, snapshot(optimizer))


def test_a_schedule_counts_the_steps_that_a_parameter_sits_out():
    a, b = (nn.Parameter(torch.zeros(1, dtype=torch.float64)) for _ in range(2))
    optimizer = StatefulOptimizer([a, b], fo.chain(fo.scale_by_lr(fo.linear_schedule(0.0, 8.0, 8))))
    for step in range(4):
        a.grad, b.grad = torch.ones_like(a), None if step in (0, 2) else torch.ones_like(b)
        optimizer.step()
    assert (a.item(), b.item()) == (-(0.0 + 1.0 + 2.0 + 3.0), -(1.0 + 3.0))


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad(pair, set_to_none):
    """A gradient of zeros is a gradient: momentum moves the parameters on, as in torch."""
    models = net(), net()
    for model, make in zip(models, pair, strict=True):
        optimizer = make(model.parameters())
        train_step(model, optimizer, 0)
        after = [p.detach().clone() for p in model.parameters()]
        optimizer.zero_grad(set_to_none=set_to_none)
        assert all(p.grad is None if set_to_none else not p.grad.any() for p in model.parameters())
        optimizer.step()
        assert same(after, [p.detach() for p in model.parameters()]) == set_to_none
    params_close(*models)


@pytest.mark.parametrize(
    "mask",
    [
        {"0.weight": True, "0.bias": False, "2.weight": True, "2.bias": False},
        lambda params: {name: p.ndim > 1 for name, p in params.items()},
        lambda params: tree.map(lambda p: p.ndim > 1, params),
    ],
    ids=["dict", "function", "tree.map"],
)
def test_a_mask_by_name_goes_with_missing_gradients(mask):
    models = net(), net()
    ours = StatefulOptimizer(models[0].named_parameters(), fo.adamw(0.01, weight_decay=0.5, mask=mask))
    matrices, vectors = ([p for p in models[1].parameters() if p.ndim == n] for n in (2, 1))
    groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    theirs = torch.optim.AdamW(groups, 0.01, weight_decay=0.5)
    for step in range(6):
        for model, optimizer in zip(models, (ours, theirs), strict=True):
            model[0].bias.requires_grad_(step % 2 == 0)
            model[2].weight.requires_grad_(step % 3 > 0)
            train_step(model, optimizer, step)
        params_close(*models)


def test_masks_by_position():
    model = net()
    tx = fo.chain(fo.add_decayed_weights(1.0, mask={0: True, 1: False, 2: False, 3: True}), fo.scale_by_lr(0.1))
    before = [p.detach().clone() for p in model.parameters()]
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    StatefulOptimizer([{"params": model[0].parameters()}, {"params": model[2].parameters()}], tx).step()
    factors = [0.9, 1.0, 1.0, 0.9]
    for p, old, factor in zip(model.parameters(), before, factors, strict=True):
        # p - 0.1·p and 0.9·p are rounded differently in the last place
        torch.testing.assert_close(p.detach(), factor * old, rtol=1e-15, atol=0)


def test_clipping_runs_over_the_parameters_that_have_a_gradient():
    a, b, c = (nn.Parameter(torch.zeros(1, dtype=torch.float64)) for _ in range(3))
    optimizer = StatefulOptimizer([a, b, c], fo.chain(fo.clip_by_global_norm(1.0), fo.scale_by_lr(1.0)))
    a.grad, b.grad = torch.full_like(a, 3.0), torch.full_like(b, 4.0)
    optimizer.step()
    # 3/5 and 4/5 up to one rounding
    torch.testing.assert_close(torch.stack([a, b, c]).flatten().tolist(), [-0.6, -0.8, 0.0], rtol=1e-15, atol=0)
    b.grad = None
    optimizer.step()
    torch.testing.assert_close(torch.stack([a, b, c]).flatten().tolist(), [-1.6, -0.8, 0.0], rtol=1e-15, atol=0)


# Closures, extras and hooks


def test_a_closure_runs_with_gradients_enabled():
    models = net(), net()
    ours, theirs = (make(m.parameters()) for make, m in zip(PAIRS["adamw"], models, strict=True))
    for step in range(3):
        losses = []
        for model, optimizer in zip(models, (ours, theirs), strict=True):

            def closure(model=model, optimizer=optimizer, step=step) -> Any:
                assert torch.is_grad_enabled()
                optimizer.zero_grad()
                x, y = data(step)
                loss = cross_entropy(model(x), y)
                loss.backward()
                return loss

            with torch.no_grad():
                losses.append(optimizer.step(closure))
        # one forward pass after another differs as the parameters do
        torch.testing.assert_close(*losses, rtol=RTOL, atol=ATOL)
        params_close(*models)


@fo.link
def scale_by_value() -> Any:
    """A link that needs the loss."""

    def transform(updates, state, params, value):
        return tree.map(lambda u: u * value, updates), state

    return transform


def test_links_get_the_loss_of_the_closure_and_other_extras():
    p = nn.Parameter(torch.tensor(3.0))
    optimizer = StatefulOptimizer([p], fo.chain(scale_by_value(), fo.scale_by_lr(1.0)))
    p.grad = torch.tensor(1.0)
    optimizer.step(lambda: (p * 0.5).sum())
    assert p == 1.5
    optimizer.step(value=torch.tensor(0.25))
    assert p == 1.25
    with pytest.raises(TypeError, match="scale_by_value needs the extra 'value'"):
        optimizer.step()
    assert p == 1.25


def test_step_hooks():
    model, calls = net(), []
    optimizer = StatefulOptimizer(model.parameters(), fo.sgd())
    handles = [
        optimizer.register_step_pre_hook(lambda o, args, kwargs: calls.append(("pre", o))),
        optimizer.register_step_post_hook(lambda o, args, kwargs: calls.append(("post", o))),
    ]
    train_step(model, optimizer, 0)
    assert calls == [("pre", optimizer), ("post", optimizer)]
    for handle in handles:
        handle.remove()
    train_step(model, optimizer, 1)
    assert len(calls) == 2


def test_state_dict_hooks():
    model, calls = net(), []
    optimizer = StatefulOptimizer(model.parameters(), fo.sgd())
    optimizer.register_state_dict_pre_hook(lambda o: calls.append("save"))
    optimizer.register_state_dict_post_hook(lambda o, state_dict: {**state_dict, "note": 1})
    optimizer.register_load_state_dict_pre_hook(
        lambda o, d: {**d, "param_groups": [{**d["param_groups"][0], "lr": 7.0}]}
    )
    optimizer.register_load_state_dict_post_hook(lambda o: calls.append("loaded"))
    saved = optimizer.state_dict()
    assert saved["note"] == 1
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["lr"] == 7.0
    assert saved["param_groups"][0]["lr"] == 1e-3
    assert calls == ["save", "loaded"]


# Groups


def test_a_group_added_between_steps_begins_afresh(pair):
    models = net(), net()
    optimizers = [make(m[0].parameters()) for make, m in zip(pair, models, strict=True)]
    for step in range(8):
        if step == 3:
            old = copy.deepcopy(optimizers[0].state_dict()["state"])
            for model, optimizer in zip(models, optimizers, strict=True):
                optimizer.add_param_group({"params": model[2].parameters(), "lr": 0.02, "weight_decay": 0.1})
            new = optimizers[0].state_dict()["state"]
            assert same({i: new[i] for i in old}, old)
            assert all(not leaf.any() for i in (2, 3) for leaf in new[i].values())
        for model, optimizer in zip(models, optimizers, strict=True):
            train_step(model, optimizer, step)
        params_close(*models)
    assert [group["lr"] for group in optimizers[0].param_groups] == [optimizers[1].param_groups[0]["lr"], 0.02]


def test_a_group_added_keeps_the_shared_counters():
    model = net()
    optimizer = StatefulOptimizer(model[0].named_parameters(), fo.ranger(fo.linear_schedule(0.1, 0.0, 10)))
    train_step(model, optimizer, 0)
    optimizer.add_param_group({"params": [(f"head.{n}", p) for n, p in model[2].named_parameters()], "lr": 0.5})
    shared: Any = optimizer.state["shared"]  # pyright: ignore[reportArgumentType]
    assert {name: int(count) for name, count in shared.items()} == {"count": 1, "inner.count": 1}
    assert torch.equal(optimizer.state[model[2].weight]["inner.slow"], model[2].weight)
    train_step(model, optimizer, 1)


def test_a_group_given_is_not_changed_and_may_be_empty():
    model, given = net(), {"params": iter(net().parameters()), "lr": 0.5, "name": "body"}
    optimizer = StatefulOptimizer([given, {"params": []}], fo.adamw())
    assert given.keys() == {"params", "lr", "name"}
    optimizer.add_param_group({"params": []})
    optimizer.add_param_group({"params": model[0].weight})
    assert [len(group["params"]) for group in optimizer.param_groups] == [4, 0, 0, 1]


def test_hypers_by_name_are_a_value_for_each_parameter():
    model = net()
    lr = {"weight": 0.5, "bias": 0.25}
    before = {name: p.detach().clone() for name, p in model[0].named_parameters()}
    optimizer = StatefulOptimizer(model[0].named_parameters(), fo.sgd(), lr=lr)
    for p in model[0].parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert same({name: p.detach() for name, p in model[0].named_parameters()}, {n: before[n] - lr[n] for n in before})


def test_tied_weights_are_one_parameter():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).tanh())

    models: Any = [Tied().double() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = StatefulOptimizer(models[0].named_parameters(), fo.adamw()), torch.optim.AdamW(models[1].parameters())
    assert optimizers[0].param_groups[0]["param_names"] == ["a.weight", "a.bias", "b.bias"]
    for step in range(3):
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            model(data(step)[0][:, :3]).square().sum().backward()
            optimizer.step()
        params_close(*models)
