"""What StatefulOptimizer says, and that it changes nothing when it raises."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from side_by_side import net, same, snapshot, train_step
from torch import nn

import functopt as fo
from functopt import StatefulOptimizer


def test_repr():
    model = net()
    groups = [{"params": model[0].parameters()}, {"params": model[2].parameters(), "lr": torch.tensor(0.5)}]
    assert repr(StatefulOptimizer(groups, fo.scale_by_lr(), lr=0.25)).splitlines() == [
        "StatefulOptimizer(scale_by_lr(lr=0.25)",
        "  group 0: 2 parameters, lr=0.25",
        "  group 1: 2 parameters, lr=tensor(0.5)",
        ")",
    ]


# Errors


def weight() -> nn.Parameter:
    return nn.Parameter(torch.ones(2))


def twice(p: Any) -> list[Any]:
    return [p, p]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: StatefulOptimizer([], fo.sgd()), ValueError, "empty parameter list"),
        (lambda: StatefulOptimizer([{"params": []}], fo.sgd()), ValueError, "params has no leaves"),
        (lambda: StatefulOptimizer(weight(), fo.sgd()), TypeError, "iterable of Tensors"),
        (
            lambda: StatefulOptimizer([weight()], cast("Any", fo.sgd)),
            TypeError,
            "tx is a function, expected a Transform; call it",
        ),
        (
            lambda: StatefulOptimizer(twice(weight()), fo.sgd()),
            ValueError,
            "parameter 1 of the group is parameter 0 again",
        ),
        (lambda: StatefulOptimizer([{"params": [p]} for p in twice(weight())], fo.sgd()), ValueError, "more than one"),
        (lambda: StatefulOptimizer([("a", weight()), ("a", weight())], fo.sgd()), ValueError, "the same name"),
        (lambda: StatefulOptimizer([weight() * 2], fo.sgd()), ValueError, "non-leaf"),
        (lambda: StatefulOptimizer([{"params": {weight()}}], fo.sgd()), TypeError, "ordered collections"),
        (
            lambda: StatefulOptimizer([weight(), torch.ones(2, dtype=torch.long)], fo.sgd()),
            TypeError,
            "at '1' is a int64",
        ),
        (lambda: StatefulOptimizer([weight()], fo.sgd(), weight_decya=1), KeyError, "Did you mean 'weight_decay'"),
        (lambda: StatefulOptimizer([weight()], fo.sgd(), learning_rate=1), KeyError, "here it is called 'lr'"),
        (lambda: StatefulOptimizer([weight()], fo.sgd(), betas=(0.9, 0.99)), KeyError, "no hyper 'beta1'"),
        (
            lambda: StatefulOptimizer([{"params": [weight()], "mometnum": 1}], fo.sgd(momentum=0.9)),
            KeyError,
            "'momentum'",
        ),
        (lambda: StatefulOptimizer([weight()], fo.sgd(), lr=-1.0), ValueError, r"lr must be in \[0, inf\), got -1.0"),
        (lambda: StatefulOptimizer([{"params": [weight()], "lr": -1.0}], fo.sgd()), ValueError, "got -1.0"),
        (lambda: StatefulOptimizer([weight()], fo.sgd(), lr=torch.ones(2)), ValueError, r"shape \[2\], expected a 0-d"),
        (lambda: StatefulOptimizer([("w", weight())], fo.sgd(), lr={"v": 0.1}), ValueError, "no value for 'w'"),
        (lambda: StatefulOptimizer([{"lr": 0.1}], fo.sgd()), TypeError, "a dict with 'params'"),
    ],
)
def test_errors_of_the_constructor(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("group", "error", "message"),
    [
        ({"params": [weight()], "lr": -1.0}, ValueError, "got -1.0"),
        ({"params": [weight()], "beta3": 0.5}, KeyError, "no hyper 'beta3'"),
        ({"params": [torch.ones(2, dtype=torch.long)]}, TypeError, "int64"),
        ({"params": [weight() * 2]}, ValueError, "non-leaf"),
        ({"params": [("w", weight())]}, ValueError, "with names"),
        ({"params": [weight()], "lr": fo.constant_schedule(0.1)}, ValueError, "has no step counter"),
        ([weight()], TypeError, "a dict with 'params'"),
    ],
)
def test_a_group_that_cannot_be_added_changes_nothing(group, error, message):
    model = net()
    optimizer = StatefulOptimizer(model.parameters(), fo.adamw())
    train_step(model, optimizer, 0)
    before = snapshot(optimizer)
    with pytest.raises(error, match=message):
        optimizer.add_param_group(group)
    with pytest.raises(ValueError, match="more than one"):
        optimizer.add_param_group({"params": [model[0].weight]})
    assert same(before, snapshot(optimizer))
    train_step(model, optimizer, 1)


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("lr", -1.0, ValueError, "lr must be in"),
        ("beta1", 1.5, ValueError, "beta1 must be in"),
        ("lr", "0.1", TypeError, "expected a number"),
        ("lr", fo.constant_schedule(0.1), ValueError, "has no step counter"),
        ("lr", torch.ones(3), ValueError, "expected a 0-d tensor"),
    ],
)
def test_a_step_that_fails_changes_nothing(name, value, error, message):
    model = net()
    optimizer = StatefulOptimizer(model.parameters(), fo.adamw())
    train_step(model, optimizer, 0)
    old = optimizer.param_groups[0][name]
    before = snapshot(optimizer)
    optimizer.param_groups[0][name] = value
    with pytest.raises(error, match=message):
        train_step(model, optimizer, 1)
    optimizer.param_groups[0][name] = old
    assert same(before, snapshot(optimizer))
    train_step(model, optimizer, 1)


def test_a_sparse_gradient_is_refused_by_name():
    model = nn.Sequential(nn.Embedding(4, 2, sparse=True), nn.Linear(2, 1))
    optimizer = StatefulOptimizer(model.named_parameters(), fo.sgd())
    before = snapshot(optimizer)
    model(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(TypeError, match=r"gradient of parameter '0.weight' is sparse.*sparse=False"):
        optimizer.step()
    assert same(before, snapshot(optimizer))
