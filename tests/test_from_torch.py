"""from_torch: the pure forms of torch's optimizers, and torch's optimizers with fastai's interface."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from side_by_side import SCHEDULERS, data, net, same, train_step
from test_torch_parity import CASES, STEPS, name
from torch import nn
from torch.nn.functional import cross_entropy

import functopt as fo
from functopt import StatefulOptimizer, from_torch

# The pure form


@pytest.fixture
def _torch_counts_in_float64() -> Iterator[None]:
    """torch.optim keeps its own bookkeeping (NAdam's product of momenta) in the default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


# Of the classes whose options are compared elsewhere: that every option arrives.
OTHERS: list[Any] = [
    (None, torch.optim.Adadelta, {}, {"lr": 0.5, "rho": 0.8, "eps": 1e-4, "weight_decay": 0.1, "maximize": True}),
    (None, torch.optim.Adagrad, {}, {"lr": 0.5, "lr_decay": 0.1, "weight_decay": 0.1, "eps": 1e-3}),
    (None, torch.optim.Adagrad, {}, {"initial_accumulator_value": 0.3, "maximize": True}),
    (None, torch.optim.Adam, {}, {"lr": 0.1, "amsgrad": True, "betas": (0.5, 0.7), "weight_decay": 0.1}),
    (None, torch.optim.AdamW, {}, {"lr": 0.1, "amsgrad": True, "betas": (0.5, 0.7), "weight_decay": 0.1}),
    (None, torch.optim.Adamax, {}, {"lr": 0.1, "betas": (0.5, 0.7), "weight_decay": 0.1, "maximize": True}),
    (None, torch.optim.ASGD, {}, {"lr": 0.1, "lambd": 0.1, "alpha": 0.5, "t0": 3.0, "weight_decay": 0.1}),
    (None, torch.optim.Rprop, {}, {"lr": 0.1, "etas": (0.4, 1.3), "step_sizes": (0.05, 0.2), "maximize": True}),
    (None, torch.optim.Muon, {}, {"lr": 0.1, "momentum": 0.5, "nesterov": False, "ns_steps": 3, "eps": 1e-3}),
    (None, torch.optim.Muon, {}, {"ns_coefficients": (2.0, -1.5, 0.5), "adjust_lr_fn": "match_rms_adamw"}),
]


@pytest.mark.usefixtures("_torch_counts_in_float64")
@pytest.mark.parametrize("case", [*CASES, *OTHERS], ids=name)
def test_the_transform_computes_what_the_class_does(case: Any):
    _, torch_class, _, options = case
    tx = from_torch(torch_class, **options)
    generator = torch.Generator().manual_seed(0)
    shapes: Any = {"a": (4, 3)} if torch_class is torch.optim.Muon else {"a": (4, 3), "b": (3,), "c": ()}
    mirror = {k: nn.Parameter(torch.randn(s, generator=generator)) for k, s in shapes.items()}
    params = {key: p.detach().clone() for key, p in mirror.items()}
    state, reference = tx.init(params), torch_class(mirror.values(), **options)
    reference.param_groups[0]["foreach"] = False
    for _ in range(STEPS // 4):
        grads = {key: torch.randn(p.shape, generator=generator) for key, p in params.items()}
        params, state = tx.update(grads, state, params)
        for key, grad in grads.items():
            mirror[key].grad = grad
        reference.step()
    for key, p in mirror.items():
        # the same equations in another order: a few roundings of 1e-16 in each of 25 steps
        torch.testing.assert_close(params[key], p.detach(), rtol=1e-12, atol=1e-13)


def test_the_transform_is_that_of_the_recipe():
    assert from_torch(torch.optim.SGD) == fo.sgd(1e-3, 0.0, 0.0, 0.0)
    assert from_torch(torch.optim.AdamW, lr=0.1, foreach=True, capturable=False) == fo.adamw(0.1, debias="power")
    assert from_torch(torch.optim.Adam, decoupled_weight_decay=True, weight_decay=0.01) == fo.adamw(debias="power")
    assert from_torch(torch.optim.Adafactor).hypers == fo.adafactor().hypers
    lr = torch.tensor(0.1)
    assert from_torch(torch.optim.AdamW, lr=lr).hypers["lr"] is lr


def test_betas_that_change_are_debiased_as_in_torch():
    models = net(), net()
    ours = StatefulOptimizer(models[0].parameters(), from_torch(torch.optim.AdamW))
    theirs = torch.optim.AdamW(models[1].parameters())
    for step in range(8):
        for model, optimizer in zip(models, (ours, theirs), strict=True):
            optimizer.param_groups[0]["betas"] = (0.5 + 0.05 * step, 0.9)
            train_step(model, optimizer, step)
    for p, q in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)


def test_every_class_has_a_form_or_is_refused_by_name():
    classes: dict[str, Any] = dict(inspect.getmembers(torch.optim, inspect.isclass))
    del classes["Optimizer"]
    forms = {*classes} - {"LBFGS", "SparseAdam"}
    refused = set()
    for torch_class in classes.values():
        if torch_class.__name__ in forms:
            assert isinstance(from_torch(torch_class), fo.Transform)
        else:
            with pytest.raises(
                ValueError, match=rf"from_torch: {torch_class.__name__} has no functional form"
            ) as error:
                from_torch(torch_class)
            assert all(form in str(error.value) for form in forms)
            refused.add(torch_class.__name__)
    assert refused == {"LBFGS", "SparseAdam"}


class Changed(torch.optim.AdamW):
    """A subclass may compute something else."""


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: from_torch(Changed), ValueError, "Changed has no functional form"),
        (lambda: from_torch(torch.optim.Adam, lr=-1.0), ValueError, "Invalid learning rate: -1.0"),
        (lambda: from_torch(torch.optim.Adam, learning_rate=1.0), TypeError, "learning_rate"),
        (lambda: from_torch(fo.adam), TypeError, "expected a subclass of torch.optim.Optimizer, got <function adam"),  # pyright: ignore[reportArgumentType]
        (lambda: from_torch(torch.optim.Optimizer), ValueError, "Optimizer has no functional form"),
    ],
)
def test_errors_of_the_transform(make: Any, error: Any, message: str):
    with pytest.raises(error, match=message):
        make()


# The optimizer

# Every class of torch.optim, with what it needs to train this network.
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "SGD": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}, "Adam": {}, "AdamW": {}, "NAdam": {}, "RAdam": {},
    "RMSprop": {}, "Adafactor": {}, "Adagrad": {}, "Adadelta": {}, "Adamax": {}, "ASGD": {}, "Rprop": {}, "LBFGS": {},
}  # fmt: skip


def both(kind: str, **more: Any) -> tuple[Any, Any, Any, Any]:
    """A model and an optimizer of ours, and the same of torch's."""
    models = net(), net()
    torch_class, options = getattr(torch.optim, kind), {**OPTIMIZERS[kind], **more}
    return (
        models[0],
        from_torch(torch_class, models[0].parameters(), **options),
        models[1],
        torch_class(models[1].parameters(), **options),
    )


def train(model: Any, optimizer: Any, steps: range) -> list[float]:
    losses = []
    for step in steps:

        def closure(step: int = step) -> Any:
            optimizer.zero_grad()
            x, y = data(step)
            loss = cross_entropy(model(x), y)
            loss.backward()
            return loss

        losses.append(float(optimizer.step(closure).detach()))
    return losses


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_it_is_the_torch_optimizer(kind: str):
    model, ours, other, theirs = both(kind)
    assert isinstance(ours, type(theirs))
    assert repr(ours) == repr(theirs)
    assert train(model, ours, range(4)) == train(other, theirs, range(4))
    assert same(ours.state_dict(), theirs.state_dict())
    assert repr(ours) == repr(theirs)
    # each takes the other's checkpoint
    for optimizer, source in ((ours, theirs), (theirs, ours)):
        file = io.BytesIO()
        torch.save(source.state_dict(), file)
        optimizer.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    assert train(model, ours, range(4, 8)) == train(other, theirs, range(4, 8))
    assert same(model.state_dict(), other.state_dict())


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_clear_state(kind: str):
    model, ours, other, _ = both(kind)
    train(model, ours, range(3))
    ours.set_hyper("lr", 0.02)
    ours.clear_state()
    other.load_state_dict(model.state_dict())
    fresh = getattr(torch.optim, kind)(other.parameters(), **{**OPTIMIZERS[kind], "lr": 0.02})
    assert same(ours.state_dict()["state"], fresh.state_dict()["state"])
    assert train(model, ours, range(3, 6)) == train(other, fresh, range(3, 6))
    assert same(model.state_dict(), other.state_dict())


@pytest.mark.parametrize("kind", sorted(OPTIMIZERS.keys() - {"LBFGS"}))  # torch's own LBFGS cannot be copied either
@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))], ids=["deepcopy", "pickle"]
)
def test_a_copy_goes_on_alone(kind: str, duplicate: Any):
    model, ours, *_ = both(kind)
    train(model, ours, range(2))
    if kind == "SGD":
        ours.mark([model[0].bias], do_wd=False)
    other, copied = duplicate((model, ours))
    assert type(copied) is type(ours)
    assert [id(p) for p in copied.param_lists[0]] == [id(p) for p in other.parameters()]
    before = copy.deepcopy(model.state_dict())
    losses = train(other, copied, range(2, 6))
    assert same(before, model.state_dict())
    assert train(model, ours, range(2, 6)) == losses
    assert same(model.state_dict(), other.state_dict())
    copied.set_hypers(lr=0.5)
    assert ours.hypers[0]["lr"] != 0.5
    copied.clear_state()


@pytest.mark.parametrize("schedule", SCHEDULERS.values(), ids=SCHEDULERS)
@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
def test_schedulers(kind: str, schedule: Any):
    model, ours, other, theirs = both(kind)
    schedulers = schedule(ours), schedule(theirs)
    for step in range(20):
        losses = train(model, ours, range(step, step + 1)), train(other, theirs, range(step, step + 1))
        assert losses[0] == losses[1]
        for scheduler, loss in zip(schedulers, losses, strict=True):
            scheduler.step(*(loss if "Plateau" in type(scheduler).__name__ else []))
        assert schedulers[0].get_last_lr() == schedulers[1].get_last_lr()
    assert same(model.state_dict(), other.state_dict())


def test_hypers_of_groups():
    model = net()
    lists = [[*model[0].parameters()], [*model[2].parameters()]]
    optimizer = from_torch(torch.optim.AdamW, lists, lr=slice(1e-3, 1e-1), weight_decay=0.1)
    assert optimizer.param_lists == lists
    assert [h["lr"] for h in optimizer.hypers] == pytest.approx([1e-3, 1e-1])
    optimizer.set_hypers(mom=[0.8, 0.7], sqr_mom=0.9, wd=slice(0.2), eps=1e-5)
    assert [group["betas"] for group in optimizer.param_groups] == [(0.8, 0.9), (0.7, 0.9)]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.02, 0.2]
    assert [(h["mom"], h["beta1"], h["sqr_mom"], h["wd"]) for h in optimizer.hypers] == [
        (0.8, 0.8, 0.9, 0.02), (0.7, 0.7, 0.9, 0.2),
    ]  # fmt: skip
    before = copy.deepcopy(optimizer.hypers)
    for values, error in (
        ({"lr": 1.0, "beta1": 1.5}, ValueError),
        ({"lr": -1.0}, ValueError),
        ({"lr": "x"}, TypeError),
        ({"lr": [1.0, 2.0, 3.0]}, ValueError),
        ({"lr": 1.0, "momentum": 0.5}, KeyError),
        ({"lr": fo.constant_schedule(0.1)}, ValueError),
    ):
        with pytest.raises(error):
            optimizer.set_hypers(**values)
        assert optimizer.hypers == before
    rms = from_torch(torch.optim.RMSprop, model.parameters(), momentum=0.5)
    rms.set_hypers(mom=0.9, sqr_mom=0.8)
    assert (rms.param_groups[0]["momentum"], rms.param_groups[0]["alpha"]) == (0.9, 0.8)


def test_frozen_groups_stay_and_the_others_train_as_in_torch():
    models = net(), net()
    lists = [[[*m[0].parameters()], [*m[2].parameters()]] for m in models]
    optimizer = from_torch(torch.optim.AdamW, lists[0], lr=0.1)
    optimizer.freeze()
    reference = torch.optim.AdamW(lists[1][1], lr=0.1)
    models[1][0].requires_grad_(False)
    start = copy.deepcopy(models[0].state_dict())
    for step in range(3):
        for model, o in zip(models, (optimizer, reference), strict=True):
            train_step(model, o, step)
    assert same(models[0].state_dict(), models[1].state_dict())
    assert torch.equal(models[0][0].weight, start["0.weight"])
    assert len(optimizer.all_params(with_grad=True)) == 2
    optimizer.state[models[0][0].bias]["force_train"] = True  # as fastai sets it
    optimizer.freeze()
    assert [p.requires_grad for p in models[0].parameters()] == [False, True, True, True]
    optimizer.unfreeze()
    assert all(p.requires_grad for p in models[0].parameters())
    assert optimizer.frozen_idx == 0
    train_step(models[0], optimizer, 3)


@pytest.mark.parametrize("kind", ["SGD", "AdamW", "Adam", "RMSprop"])
def test_marked_parameters_do_not_decay(kind: str):
    models = net(), net()
    options = {**OPTIMIZERS[kind], "weight_decay": 0.5, "lr": 0.01}
    torch_class = getattr(torch.optim, kind)
    optimizer = from_torch(torch_class, models[0].parameters(), **options)
    weights, biases = ([p for p in models[1].parameters() if p.ndim == n] for n in (2, 1))
    reference = torch_class([{"params": weights}, {"params": biases, "weight_decay": 0.0}], **options)
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("pre"))
    optimizer.register_step_post_hook(lambda *_: calls.append("post"))
    for step in range(5):
        if not step:
            for p in models[0].parameters():
                if p.ndim == 1:
                    optimizer.state[p]["do_wd"] = False  # as fastai sets it
        for model, o in zip(models, (optimizer, reference), strict=True):
            train_step(model, o, step)
    assert same(models[0].state_dict(), models[1].state_dict())
    assert len(optimizer.param_groups) == 1
    assert calls == ["pre", "post"] * 5
    assert all("do_wd" not in own for own in optimizer.state_dict()["state"].values())
    # and torch's own class loads it
    torch_class(net().parameters()).load_state_dict(optimizer.state_dict())
    with pytest.raises(KeyError, match="does not belong to this optimizer"):
        optimizer.mark([nn.Parameter(torch.ones(1))], do_wd=False)


def test_a_step_that_fails_keeps_the_groups():
    model = net()
    optimizer = from_torch(torch.optim.SGD, model.parameters(), weight_decay=0.1)
    optimizer.mark([model[0].bias], do_wd=False)
    groups = optimizer.param_groups

    def closure() -> Any:
        raise RuntimeError("no loss")

    with pytest.raises(RuntimeError, match="no loss"):
        optimizer.step(closure)
    assert optimizer.param_groups is groups
