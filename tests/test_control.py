"""Groups by name, and fastai's methods where the seeds have no case for them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from side_by_side import params_close
from torch import nn

import functopt as fo
from functopt import StatefulOptimizer


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 3)).double()


def test_by_name():
    net = model()
    groups = fo.by_name(
        net, ("*.bias", {"weight_decay": 0.0}), (lambda name, p: p.ndim == 2 and name < "1", {"lr": 0.5}), lr=0.1
    )
    assert [[name for name, _ in group["params"]] for group in groups] == [
        ["0.bias", "1.bias", "2.bias"], ["0.weight"], ["1.weight", "2.weight"],
    ]  # fmt: skip
    optimizer = StatefulOptimizer(groups, fo.adamw())
    assert [hypers["lr"] for hypers in optimizer.hypers] == [1e-3, 0.5, 0.1]
    assert [hypers["weight_decay"] for hypers in optimizer.hypers] == [0.0, 1e-2, 1e-2]
    torch.optim.AdamW(fo.by_name(net, ("0.*", {"lr": 0.5})), lr=0.1)  # torch's optimizers take them too
    with pytest.raises(ValueError, match=r"'head\.\*' fits no parameter"):
        fo.by_name(net, ("head.*", {"lr": 0.5}))
    with pytest.raises(ValueError, match=r"'0\.weight' fits no parameter that is not in a group already"):
        fo.by_name(net, ("0.*", {}), ("0.weight", {}))


def test_no_decay_on_bias_and_norm():
    ours, theirs = model(), model()
    groups = fo.no_decay_on_bias_and_norm(ours, weight_decay=0.3)
    assert [[name for name, _ in group["params"]] for group in groups] == [
        ["0.weight", "2.weight"], ["0.bias", "1.weight", "1.bias", "2.bias"],
    ]  # fmt: skip
    assert {id(p) for p in fo.bias_and_norm(ours, bias=False)} == {id(ours[1].weight), id(ours[1].bias)}
    by_hand = [
        {"params": [theirs[0].weight, theirs[2].weight], "weight_decay": 0.3},
        {"params": [theirs[0].bias, theirs[1].weight, theirs[1].bias, theirs[2].bias], "weight_decay": 0.0},
    ]
    for net, optimizer in ((ours, StatefulOptimizer(groups, fo.adamw(0.1))), (theirs, torch.optim.AdamW(by_hand, 0.1))):
        for i in range(3):
            optimizer.zero_grad()
            net(torch.full((2, 4), float(i + 1), dtype=torch.float64)).square().sum().backward()
            optimizer.step()
    params_close(ours, theirs)


def groups_of(*sizes: int) -> list[list[nn.Parameter]]:
    return [[nn.Parameter(torch.ones(3)) for _ in range(size)] for size in sizes]


def test_lists_of_parameters_are_groups():
    lists = groups_of(2, 1)
    optimizer = StatefulOptimizer(lists, fo.adamw(), lr=slice(1e-3, 1e-1), weight_decay=[0.0, 0.1])
    assert [[id(p) for p in own] for own in optimizer.param_lists] == [[id(p) for p in own] for own in lists]
    assert [(h["lr"], h["wd"]) for h in optimizer.hypers] == [(1e-3, 0.0), (pytest.approx(1e-1), 0.1)]


def test_hypers_have_fastais_names_too():
    adam, sgd = StatefulOptimizer(groups_of(1), fo.adamw()), StatefulOptimizer(groups_of(1), fo.sgd(momentum=0.9))
    for optimizer in (adam, sgd):
        optimizer.set_hypers(mom=0.5, wd=0.25)
    adam.set_hyper("sqr_mom", np.float64(0.75))
    assert adam.hypers[0]["beta1"] == adam.hypers[0]["mom"] == 0.5 == sgd.hypers[0]["momentum"]
    assert adam.param_groups[0]["betas"] == (0.5, 0.75)
    assert sgd.hypers[0]["wd"] == 0.25
    with pytest.raises(KeyError):
        sgd.hypers[0]["sqr_mom"]
    adam.set_hypers(lr=np.array([0.5]))
    assert adam.param_groups[0]["lr"] == 0.5


def test_set_hypers_changes_all_or_nothing():
    optimizer = StatefulOptimizer(groups_of(1, 1), fo.adamw())
    before = optimizer.hypers
    for wrong, error, words in [
        ({"lr": 0.5, "beta3": 1.0}, KeyError, "no hyper 'beta3'"),
        ({"lr": 0.5, "weight_decay": -1.0}, ValueError, "weight_decay must be in"),
        ({"lr": [0.5, -1.0]}, ValueError, "lr must be in"),
        ({"lr": [0.5] * 3}, ValueError, "lr has 3 values, but there are 2 groups"),
        ({"lr": slice(1, None)}, ValueError, "has no end"),
        ({"lr": "fast"}, TypeError, "lr is a str"),
    ]:
        with pytest.raises(error, match=words):
            optimizer.set_hypers(**wrong)
        assert optimizer.hypers == before
    with pytest.raises(KeyError, match="no hyper"):
        StatefulOptimizer(groups_of(1), fo.adamw(), momentum=[0.1])


def test_all_params():
    optimizer = StatefulOptimizer(groups_of(2, 1), fo.adamw(), lr=[0.1, 0.2])
    p = optimizer.param_groups[1]["params"][0]
    p.grad = torch.ones(3)
    ((param, group, state, hyper),) = optimizer.all_params(slice(1, None))
    assert param is p
    assert group is optimizer.param_groups[1]
    assert torch.equal(state["mu.total"], torch.zeros(3))
    assert hyper["lr"] == 0.2
    assert len(optimizer.all_params()) == 3
    assert [a.param is p for a in optimizer.all_params(with_grad=True)] == [True]


def test_freezing():
    (one,), (two,) = lists = groups_of(1, 1)
    optimizer = StatefulOptimizer(lists, fo.adamw())
    optimizer.freeze()
    assert (one.requires_grad, two.requires_grad, optimizer.frozen_idx) == (False, True, 1)
    optimizer.unfreeze()
    assert (one.requires_grad, two.requires_grad) == (True, True)
    with pytest.raises(ValueError, match="there are 2 groups, got 3"):
        optimizer.freeze_to(3)
    with pytest.raises(ValueError, match="only one group"):
        StatefulOptimizer(groups_of(2), fo.adamw()).freeze()


def test_marks():
    (p, q), = lists = groups_of(2)  # fmt: skip
    optimizer = StatefulOptimizer(lists, fo.adamw(0.1, weight_decay=0.5))
    optimizer.mark([p], do_wd=False)
    optimizer.state[q]["force_train"] = True
    for param in (p, q):
        param.grad = torch.zeros(3)
    optimizer.step()
    assert torch.equal(p.detach(), torch.ones(3))
    assert torch.allclose(q.detach(), torch.full((3,), 0.95))
    saved = optimizer.state_dict()
    other = StatefulOptimizer(groups_of(2), fo.adamw())
    other.load_state_dict(saved)
    assert other.state_dict()["state"][0]["do_wd"] is False
    assert other.state_dict()["state"][1]["force_train"] is True
    with pytest.raises(KeyError, match="no mark 'wd'"):
        optimizer.mark([p], wd=False)
    with pytest.raises(KeyError, match="does not belong"):
        optimizer.mark([nn.Parameter(torch.ones(1))], do_wd=False)
    for name, value in (("momentum_buffer", torch.zeros(3)), ("mu.total", torch.zeros(2)), ("mu.total", 0.0)):
        with pytest.raises(KeyError, match=f"{name!r} cannot be set"):
            optimizer.state[p][name] = value
    optimizer.state[p]["mu.total"] = torch.full((3,), 0.5)  # copied into it
    assert torch.equal(optimizer.state[p]["mu.total"], torch.full((3,), 0.5))


def test_steps_are_counted_by_group():
    (one,), (two,) = lists = groups_of(1, 1)
    optimizer = StatefulOptimizer(lists, fo.adamw())
    for i in range(3):
        one.grad = torch.ones(3)
        two.grad = torch.ones(3) if i else None
        optimizer.step()
    assert [group["steps"] for group in optimizer.param_groups] == [3, 2]
    optimizer.clear_state()
    assert [group["steps"] for group in optimizer.param_groups] == [0, 0]
    assert not any(t.any() for a in optimizer.all_params() for t in a.state.values())


def test_a_closure_is_the_loss_along_a_line():
    seen = []

    @fo.link
    def look(lr=0.1):
        def transform(updates, state, params, lr, value, value_fn):
            seen.append((float(value), float(value_fn({key: p + 1 for key, p in params.items()}))))
            return {key: -lr * u for key, u in updates.items()}, state

        return transform

    p = nn.Parameter(torch.tensor([2.0]))
    optimizer = StatefulOptimizer([("p", p)], look())

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 4.0
    assert seen == [(4.0, 9.0)]
    assert p.item() == pytest.approx(1.6)
    assert p.grad == 4.0
