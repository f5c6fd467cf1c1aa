"""What the kit trains: a Learner computes what the loop it stands for does, and so does a PureLearner."""

from __future__ import annotations

import io
import random
from typing import Any

import numpy as np
import pytest
import torch
from said import words
from side_by_side import RTOL, data, same
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import functopt as fo
from functopt.training.learner import Learner, PureLearner
from functopt.training.random import random_state, set_random_state


def net(seed: int = 0, dropout: float = 0.0) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # no bias in front of the normalisation: its gradient would be nothing but rounding, which Adam scales up
        layers = nn.Linear(5, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 3)
        return nn.Sequential(*layers).double()


def stateful(model: nn.Module, tx: fo.Transform, **options: Any) -> Learner:
    return Learner(model, fo.StatefulOptimizer(model.named_parameters(), tx, **options), cross_entropy)


def pure(model: nn.Module, tx: fo.Transform, **options: Any) -> PureLearner:
    return PureLearner(model, tx, cross_entropy, **options)


def steps(learner: Any, numbers: range) -> list[float]:
    learner.train()
    losses = []
    for number in numbers:
        loss = learner.loss(data(number))
        losses.append(loss.item())
        learner.step(loss)
    return losses


def through_a_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


SCHEDULED = lambda: fo.adamw(fo.cosine_schedule(0.05, 0.001, 12), weight_decay=0.1)


def test_both_are_the_loop_of_pytorch():
    model, ours, theirs = net(), net(), net()
    optimizer = torch.optim.AdamW(model.parameters(), 0.02, weight_decay=0.1)
    losses = []
    for number in range(8):
        x, y = data(number)
        loss = cross_entropy(model(x), y)
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    tx = fo.adamw(0.02, weight_decay=0.1)
    learners = [stateful(ours, tx), pure(theirs, tx)]
    untouched = {name: value.clone() for name, value in theirs.state_dict().items()}
    for learner in learners:
        np.testing.assert_allclose(steps(learner, range(8)), losses, rtol=RTOL)
    assert same(dict(theirs.state_dict()), untouched)  # until it is told to write into the model
    for made in (ours, learners[1].to_model()):
        for got, want in zip(made.state_dict().values(), model.state_dict().values(), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-13)
    x, y = data(99)
    for learner, made in zip(learners, (ours, theirs), strict=True):
        learner.train(False)
        before = learner.state_dict()
        predictions, target = learner.predict((x, y))
        assert torch.equal(predictions, made.eval()(x))
        assert target is y
        assert not predictions.requires_grad
        assert same(learner.state_dict(), before)
        learner.train()
        learner.predict((x, y))  # BatchNorm counts batches in training mode
        assert isinstance(learner, Learner) or same(learner.state_dict(), before)


def test_a_pure_learner_keeps_what_it_replaces():
    learner = pure(net(), fo.adamw(0.02))
    params, buffers, state = learner.params, learner.buffers, learner.state
    copies = fo.tree.map(torch.clone, [params, buffers, state])
    steps(learner, range(2))
    assert same([params, buffers, state], copies)
    assert not same(learner.buffers, buffers)


@pytest.mark.usefixtures("_graphs_only")
def test_compiled_it_is_the_same():
    tx = fo.adamw(0.02, weight_decay=0.1)
    eager, compiled = pure(net(), tx), pure(net(), tx, compile=True)
    np.testing.assert_allclose(steps(compiled, range(4)), steps(eager, range(4)), rtol=1e-12)
    for learner in (eager, compiled):
        learner.set_hypers(lr=0.1)
    np.testing.assert_allclose(steps(compiled, range(4, 8)), steps(eager, range(4, 8)), rtol=1e-12)


@pytest.mark.parametrize("make", [stateful, pure])
@pytest.mark.parametrize("through", [lambda state: state, through_a_file], ids=["memory", "file"])
def test_a_state_is_a_copy_and_goes_on_bit_for_bit(make, through):
    learner = make(net(dropout=0.5), SCHEDULED())
    learner.set_hypers(weight_decay=0.3)
    torch.manual_seed(1)
    steps(learner, range(4))
    saved, random = through(learner.state_dict()), random_state()
    kept = fo.tree.map(lambda t: t.clone() if isinstance(t, Tensor) else t, saved)
    losses = steps(learner, range(4, 8))
    assert same(saved, kept)
    other = make(net(seed=5, dropout=0.5), SCHEDULED())
    for again in (learner, other):
        again.load_state_dict(saved)
        set_random_state(random)
        assert steps(again, range(4, 8)) == losses
        assert same(saved, kept)
    assert same(learner.state_dict(), other.state_dict())


def test_loading_writes_into_the_models_own_tensors_and_forgets_gradients():
    learner = stateful(net(), fo.sgd(0.1))
    saved, own = learner.state_dict(), list(learner.model.parameters())
    learner.loss(data(0)).backward()
    learner.load_state_dict(saved)
    assert all(p is q for p, q in zip(learner.model.parameters(), own, strict=True))
    assert all(p.grad is None or not p.grad.any() for p in own)


def test_what_is_frozen_comes_back_parameter_by_parameter():
    model = net()
    learner = Learner(model, fo.StatefulOptimizer([[*model[:2].parameters()], [*model[4].parameters()]], fo.sgd(0.1)),
                      cross_entropy)  # fmt: skip
    learner.optimizer.freeze()
    model[4].bias.requires_grad_(False)
    needed = [p.requires_grad for p in model.parameters()]
    assert needed == [False, False, False, True, False]
    saved = learner.state_dict()
    learner.optimizer.unfreeze()
    learner.load_state_dict(saved)
    assert [p.requires_grad for p in model.parameters()] == needed
    assert learner.optimizer.frozen_idx == 1


def test_batches_of_several_inputs_and_trees():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(3, dtype=torch.float64))

        def forward(self, a: Tensor, more: dict[str, Tensor]) -> dict[str, Tensor]:
            return {"out": (a + more["b"]) * self.w}

    batch = torch.ones(2, 3).double(), {"b": torch.ones(2, 3).double()}, {"out": torch.zeros(2, 3).double()}
    loss_fn = lambda predictions, target: (predictions["out"] - target["out"]).square().mean()
    model = Two()
    for learner in (
        Learner(model, fo.StatefulOptimizer(model.parameters(), fo.sgd(0.1)), loss_fn),
        PureLearner(Two(), fo.sgd(0.1), loss_fn),
    ):
        loss = learner.loss(batch)
        assert loss.item() == 4.0
        learner.step(loss)
        assert learner.loss(batch).item() < 4.0


def test_a_pure_learners_learning_rate_is_a_prefix_tree():
    learner = pure(net(), fo.sgd(0.1))
    before = learner.params
    learner.set_hypers(lr={name: 0.1 if name.startswith("4.") else 0.0 for name in before})
    steps(learner, range(1))
    moved = {name for name in before if not torch.equal(before[name], learner.params[name])}
    assert moved == {"4.weight", "4.bias"}


def test_errors():
    model = net()
    with pytest.raises(TypeError) as error:
        Learner(model, torch.optim.SGD(model.parameters(), 0.1), cross_entropy)
    words(error, "SGD", "from_torch")
    learner = pure(net(), fo.sgd(0.1))
    with pytest.raises(KeyError, match="no hyper 'lrr'"):
        learner.set_hypers(lrr=1.0)
    with pytest.raises(ValueError, match=r"lr must be in \[0, inf\)"):
        learner.set_hypers(weight_decay=0.1, lr=-1.0)
    assert learner.hypers[0]["weight_decay"] == 0.0
    with pytest.raises(ValueError, match="no prefix"):
        learner.set_hypers(lr={"0.weight": 0.1})
    first, second = learner.loss(data(0)), learner.loss(data(1))
    with pytest.raises(ValueError, match="wants the loss that it returned"):
        learner.step(first)
    learner.step(second)
    with pytest.raises(ValueError, match="wants the loss"):
        learner.step(second)
    for either in (learner, stateful(net(), fo.sgd(0.1))):
        for batch in (data(0)[0], (data(0)[0],), {"x": 1}):
            with pytest.raises(TypeError, match="a batch is a tuple"):
                either.loss(batch)


@pytest.mark.parametrize("make", [stateful, pure])
def test_a_foreign_state_is_refused_and_changes_nothing(make):
    learner = make(net(), fo.adamw(0.02))
    steps(learner, range(2))
    before = learner.state_dict()
    wide = nn.Sequential(nn.Linear(5, 9, bias=False), nn.BatchNorm1d(9), nn.ReLU(), nn.Dropout(), nn.Linear(9, 3))
    kind = pure if make is stateful else stateful
    others = make(wide.double(), fo.adamw(0.02)), make(net(), fo.sgd(0.1, momentum=0.9)), kind(net(), fo.adamw(0.02))
    for other in others:
        with pytest.raises(ValueError, match="load_state_dict"):
            learner.load_state_dict(other.state_dict())
        assert same(learner.state_dict(), before)


def test_random_states_of_all_generators_come_back():
    draw = lambda: (random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(2).tolist())
    random.seed(3)
    np.random.seed(3)
    torch.manual_seed(3)
    random.gauss(0, 1)  # which keeps a second number for the next call, as numpy's does
    np.random.randn()
    saved = through_a_file(random_state())
    first = draw()
    assert draw() != first
    set_random_state(saved)
    assert draw() == first
