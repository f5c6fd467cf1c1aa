"""The learning rate finder: its ramp, its suggestions against fastai's, and that everything is as it was before."""

from __future__ import annotations

import csv
import math
import random
import sys
import warnings
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

import functopt as fo
from functopt.training.learner import Learner, PureLearner
from functopt.training.lr_find import LRCurve, lr_find, ramp
from functopt.training.preserved import preserved
from functopt.training.random import random_state
from functopt.training.suggestions import Suggestions, minimum, slide, steep, suggest, valley

sys.path.insert(0, str(Path(__file__).parent / "clients"))
client: Any = import_module("client")
data, load, net = client.data, client.load, client.net

# in fastai's code
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning")

RULES = {"valley": valley, "minimum": minimum, "steep": steep, "slide": slide}


# The problem


class Kept(nn.Module):
    """A part with buffers of all kinds, one of which it replaces by a new tensor, and one that it makes late."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64), persistent=False)
        self.register_buffer("mean", torch.zeros(3, dtype=torch.float64))
        self.register_buffer("late", None)
        self.register_buffer("grown", torch.ones(1, dtype=torch.float64).expand(3))

    grown: Tensor

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        self.late = self.mean + 1
        return x * self.grown


def network(seed: int = 0, dropout: float = 0.2) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 3), Kept()
        ).double()


def loader(count: int = 40, **options: Any) -> DataLoader:
    return DataLoader(data(count), batch_size=8, shuffle=True, **options)


def two_groups(model: Any) -> list[dict[str, Any]]:
    return [
        {"params": [*model[0].parameters()], "lr": 0.01},
        {"params": [*model[1].parameters(), *model[4].parameters()]},
    ]


def stateful(tx: fo.Transform, **options: Any) -> Any:
    return lambda model: fo.StatefulOptimizer(two_groups(model), tx, **options)


OPTIMIZERS = {
    "adamw, two groups": stateful(fo.adamw(1e-3)),
    "sgd with momentum": stateful(fo.sgd(1e-3, momentum=0.9)),
    "a schedule": stateful(fo.adamw(fo.linear_schedule(0.1, 0.0, 100))),
    "lr is a tensor": lambda model: fo.StatefulOptimizer(model.parameters(), fo.adamw(), lr=torch.tensor(0.01)),
    "torch's AdamW": lambda model: fo.from_torch(torch.optim.AdamW, two_groups(model), lr=1e-3),
    "torch's SGD": lambda model: fo.from_torch(torch.optim.SGD, two_groups(model), lr=1e-3, momentum=0.9),
}


def learner_of(name: str, steps: int = 2) -> Learner:
    """Return a learner that has trained, is partly frozen and partly in eval mode, and has gradients."""
    torch.manual_seed(1)
    model = network()
    learner = Learner(model, OPTIMIZERS[name](model), cross_entropy)
    for batch in [*loader()][:steps]:
        learner.step(learner.loss(batch))
    learner.loss(next(iter(loader()))).backward()
    model[1].eval()
    model[4].bias.requires_grad_(False)
    return learner


def everything(learner: Learner) -> dict[str, Any]:
    """Return all that must be as before, with the identity of what must be the same object."""
    model, optimizer = learner.model, learner.optimizer
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        "tensors": {name: (id(t), t.detach().clone(), t.requires_grad) for name, t in tensors.items()},
        "grads": [(id(p.grad), None if p.grad is None else p.grad.clone()) for p in model.parameters()],
        "modes": [part.training for part in model.modules()],
        "groups": [(id(group), {k: v for k, v in group.items() if k != "params"}) for group in optimizer.param_groups],
        "state": [[*map(torch.clone, state_of(optimizer, p).values())] for p in model.parameters()],
        "frozen": optimizer.frozen_idx,
        "random": random_state(),
    }


def state_of(optimizer: Any, param: Tensor) -> dict[str, Tensor]:
    return {k: v for k, v in optimizer.state.get(param, {}).items() if isinstance(v, Tensor)}


def same(a: Any, b: Any) -> bool:
    """Tell whether two nests are equal, tensors bit for bit."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return a == b


# Everything is as before


@pytest.mark.parametrize("steps", [0, 2], ids=["new", "trained"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_everything_is_put_back(name, steps):
    learner, batches = learner_of(name, steps), loader()
    before = everything(learner)
    seen = []
    curve = lr_find(learner, watched(batches, lambda: seen.append(everything(learner))), max_iter=12)
    assert len(curve.lrs) == 12
    # it has really moved meanwhile
    moved = [part for part in ("tensors", "grads", "modes", "groups") if not same(seen[-1][part], before[part])]
    assert moved == ["tensors", "grads", "modes", "groups"]
    after = everything(learner)
    for part, value in before.items():
        assert same(after[part], value), part


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, StopIteration])
@pytest.mark.parametrize("where", ["batches", "loss"])
def test_everything_is_put_back_after_an_exception(where, error):
    learner, batches = learner_of("adamw, two groups"), loader()
    loss_of, calls = learner.loss_of, []

    def fails() -> None:
        calls.append(1)
        if len(calls) == 7:
            raise error

    if where == "loss":
        learner.loss_of = lambda *pair: (fails(), loss_of(*pair))[1]
    else:
        batches = watched(batches, fails)
    before = everything(learner)
    # a generator turns a StopIteration into a RuntimeError
    with pytest.raises((error, RuntimeError) if error is StopIteration else error):
        lr_find(learner, batches)
    after = everything(learner)
    for part, value in before.items():
        assert same(after[part], value), part


class watched:
    """Batches before each of which something is called."""

    def __init__(self, batches: Any, call: Any) -> None:
        self.batches, self.call = batches, call

    def __iter__(self) -> Any:
        for batch in self.batches:
            self.call()
            yield batch


@pytest.mark.parametrize("tx", [fo.adamw(1e-3), fo.adamw(fo.linear_schedule(0.1, 0.0, 50))], ids=["lr", "schedule"])
@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_a_pure_learner_is_put_back(tx, error):
    model, calls = network(), []
    learner = PureLearner(model, tx, cross_entropy)
    learner.set_hypers(beta1=0.8)
    for batch in [*loader()][:2]:
        learner.step(learner.loss(batch))
    model[1].eval()
    before, modes, numbers = learner.state_dict(), [part.training for part in model.modules()], random_state()

    def call() -> None:
        calls.append(learner.params)
        if error and len(calls) == 5:
            raise error

    try:
        lr_find(learner, watched(loader(), call), max_iter=10)
    except KeyboardInterrupt:
        assert error
    assert not same(calls[-1], before["params"])
    assert same(learner.state_dict(), before)
    assert [part.training for part in model.modules()] == modes
    assert same(random_state(), numbers)
    learner.step(learner.loss(next(iter(loader()))))


@pytest.mark.parametrize("name", ["adamw, two groups", "a schedule", "torch's AdamW"])
def test_training_goes_on_as_if_nothing_had_happened(name):
    weights = []
    for find in (False, True):
        learner = learner_of(name)
        learner.model.zero_grad()
        learner.train()
        if find:
            lr_find(learner, loader(), max_iter=9)
        for batch in loader():
            learner.step(learner.loss(batch))
        weights.append([tensor.clone() for tensor in learner.model.state_dict().values()] + [torch.rand(1)])
    assert same(weights[0], weights[1])


def test_a_compiled_learner_is_put_back():
    model = nn.Sequential(nn.Linear(6, 3)).double()
    learner = Learner(
        model, fo.StatefulOptimizer(model.parameters(), fo.adamw(), compile={"backend": "aot_eager"}), cross_entropy
    )
    before = everything(learner)
    curve = lr_find(learner, loader(), max_iter=6)
    after = everything(learner)
    assert all(same(after[part], before[part]) for part in before)
    plain = Learner(model, fo.StatefulOptimizer(model.parameters(), fo.adamw()), cross_entropy)
    np.testing.assert_allclose(curve.losses, lr_find(plain, loader(), max_iter=6).losses, rtol=1e-12)


def test_gradients_from_before_do_not_take_part():
    learner = learner_of("sgd with momentum")
    with_grads = lr_find(learner, loader(), max_iter=5).losses
    learner.model.zero_grad()
    assert lr_find(learner, loader(), max_iter=5).losses.tolist() == with_grads.tolist()


def test_a_loader_with_a_generator_of_its_own():
    generator, state = torch.Generator().manual_seed(5), torch.Generator().manual_seed(5).get_state()
    lr_find(learner_of("torch's SGD"), loader(generator=generator), max_iter=12)
    assert torch.equal(generator.get_state(), state)


def test_preserved_puts_back_single_things_and_all_random_numbers():
    model: Any = network()
    optimizer = torch.optim.Adam([torch.nn.Parameter(p.detach().clone().bfloat16()) for p in model.parameters()])
    for param in optimizer.param_groups[0]["params"]:
        param.grad = torch.ones_like(param)
        # a state in more precision than the parameter, which load_state_dict of torch would round
        optimizer.state[param] = {
            "step": torch.tensor(1.0),
            "exp_avg": torch.full(param.shape, 1 / 3, dtype=torch.float64),
        }
        optimizer.state[param]["exp_avg_sq"] = torch.ones(param.shape, dtype=torch.float64)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    saved = [(id(s["exp_avg"]), s["exp_avg"].clone()) for s in optimizer.state.values()]
    with preserved(model, optimizer, scheduler):
        drawn = (random.random(), np.random.rand(), torch.rand(1).item())
        with torch.no_grad():
            for param in model.parameters():
                param.add_(1)
        for group in optimizer.param_groups:
            group["betas"] = (0.1, 0.2)
        for state in optimizer.state.values():
            state["exp_avg"].add_(1)
        scheduler.last_epoch = 5
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == drawn
    assert same([*model.state_dict().values()], [*network().state_dict().values()])
    assert same([(id(s["exp_avg"]), s["exp_avg"]) for s in optimizer.state.values()], saved)
    assert (optimizer.param_groups[0]["betas"], scheduler.last_epoch) == ((0.9, 0.999), 0)


def test_preserved_thaws_what_the_block_has_frozen():
    learner = learner_of("adamw, two groups")
    before = everything(learner)
    with preserved(learner):
        learner.optimizer.freeze()
        next(iter(learner.model.parameters())).requires_grad_(True)
    assert same(everything(learner), before)


def test_what_cannot_be_put_back():
    with pytest.raises(TypeError, match="cannot put back a list"), preserved([nn.Linear(1, 1)]):
        pass
    with pytest.raises(ValueError, match=r"'weight' has no shape yet"), preserved(nn.LazyLinear(2)):
        pass


# The ramp


def test_the_ramp_is_that_of_the_seeds():
    stored = np.load(Path(__file__).parent / "seeds.npz")
    for case, (low, high, count) in {"0": (1e-6, 10, 100), "1": (1e-7, 10, 50)}.items():
        curve = ramp(lambda lr: 1.0, min_lr=low, max_lr=high, max_iter=count)
        np.testing.assert_allclose(curve.lrs, stored[f"D/lr_find/{case}/lr"][:count], rtol=1e-9)
        assert curve.stopped == "end"


def test_all_groups_get_the_rate_of_the_step():
    learner = learner_of("adamw, two groups")
    seen = []
    curve = lr_find(learner, watched(loader(), lambda: seen.append([h["lr"] for h in learner.hypers])), max_iter=8)
    np.testing.assert_array_equal(np.array(seen), np.stack([curve.lrs] * 2, 1))
    assert [hypers["lr"] for hypers in learner.hypers] == [0.01, 1e-3]


@pytest.mark.parametrize("smooth", [0.98, 0.0])
@pytest.mark.parametrize("factor", [4.0, 10.0, None])
@pytest.mark.parametrize("read_every", [1, 7, 1000])
def test_where_it_stops_does_not_depend_on_when_it_is_read(read_every, factor, smooth):
    losses = iter([2.0, *np.linspace(1.9, 0.5, 30), *(2.0**k for k in range(40)), *[7.0] * 100])
    taken = []

    def step(lr: float) -> Tensor:
        taken.append(lr)
        return torch.tensor(next(losses), dtype=torch.float64)

    curve = ramp(step, stop_factor=factor, smooth=smooth, read_every=read_every)
    if factor is None:
        assert (len(curve.lrs), curve.stopped) == (100, "end")
        return
    assert curve.stopped == "diverged"
    averages = curve.smoothed
    beyond = averages > factor * np.minimum.accumulate(averages)
    assert np.flatnonzero(beyond).tolist() == [len(curve.lrs) - 1]
    if smooth == 0:
        assert len(curve.lrs) == 31 + (3 if factor == 4 else 4)  # 0.5, then 1, 2, 4, 8
    assert 0 <= len(taken) - len(curve.lrs) < read_every


def test_the_losses_are_read_now_and_then_only():
    read = []

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.aten._local_scalar_dense.default:
                read.append(func)
            return func(*args, **(kwargs or {}))

    model = network()
    learner = Learner(model, fo.StatefulOptimizer(model.parameters(), fo.adamw()), cross_entropy)
    batch = next(iter(loader()))

    def step(lr: float) -> Tensor:
        learner.set_hypers(lr=lr)
        loss = learner.loss(batch)
        learner.step(loss)
        return loss

    with Watching():
        assert len(ramp(step, max_iter=30, max_lr=1e-3, read_every=10).lrs) == 30
    assert not read  # three times a stack of ten, not one by one


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_it(bad):
    curve = ramp(lambda lr: bad if lr > 1e-2 else 1.0 - lr, max_iter=50)
    assert curve.stopped == ("not finite" if math.isnan(bad) else "diverged")
    assert np.isfinite(curve.losses[:-1]).all()
    assert not np.isfinite(curve.losses[-1])
    assert curve.suggestions.minimum is not None


def test_a_loss_below_zero_may_rise_a_little():
    losses = iter([-1.0, -2.0, -1.5, -1.9, 15.0, 17.0, 99.0, 99.0])
    curve = ramp(lambda lr: next(losses), max_iter=8, smooth=0.0)
    assert curve.losses.tolist() == [-1.0, -2.0, -1.5, -1.9, 15.0, 17.0]


def test_batches_start_over_or_say_why_not():
    batches = [*DataLoader(data(16), batch_size=8)]
    seen: list[int] = []
    lr_find(learner_of("torch's SGD"), watched(batches, lambda: seen.append(1)), max_iter=11)
    assert len(seen) == 11
    with pytest.raises(ValueError, match="ended after 2 and cannot start over"):
        lr_find(learner_of("torch's SGD"), iter(batches), max_iter=11)
    with pytest.raises(ValueError, match="there are no batches"):
        lr_find(learner_of("torch's SGD"), [], max_iter=11)
    endless = (batches[0] for _ in iter(int, 1))
    assert len(lr_find(learner_of("torch's SGD"), endless, max_iter=11).lrs) == 11


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_lr": 0.0}, "0 < min_lr < max_lr"),
        ({"min_lr": 1.0, "max_lr": 0.1}, "0 < min_lr < max_lr"),
        ({"max_iter": 1}, "max_iter must be at least 2, got 1"),
        ({"stop_factor": 1.0}, "stop_factor must be more than 1"),
        ({"smooth": 1.0}, r"smooth must be in \[0, 1\), got 1.0"),
        ({"read_every": 0}, "read_every must be at least 1"),
    ],
)
def test_numbers_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        ramp(lambda lr: 1.0, **options)


def test_wrong_losses_and_optimizers():
    with pytest.raises(ValueError, match=r"must be a 0-d tensor, got one of shape \[2\]"):
        ramp(lambda lr: torch.ones(2))
    learner = PureLearner(nn.Linear(6, 3).double(), fo.scale_by_adam(), cross_entropy)
    with pytest.raises(KeyError, match="no hyper 'lr'"):
        lr_find(learner, loader())


# Suggestions


@pytest.fixture(scope="module")
def fastai() -> Any:
    names = "learner", "optimizer", "data.core", "data.load", "torch_core", "callback.core", "callback.schedule"
    modules = load("fastai", *(f"fastai.{name}" for name in (*names, "callback.progress")))
    return SimpleNamespace(**{k: v for module in modules for k, v in vars(module).items()})


def finder_curve(seed: int, tx: Any, **options: Any) -> LRCurve:
    model = network(seed)
    return lr_find(Learner(model, fo.StatefulOptimizer(model.parameters(), tx), cross_entropy), loader(96), **options)


def synthetic(fall: float, noise: float, seed: int, count: int = 85) -> tuple[np.ndarray, np.ndarray]:
    """Return a curve that falls around ``fall`` and explodes two decades later, with noise."""
    lrs = np.geomspace(1e-6, 10, count)
    at = np.log10(lrs / fall)
    exploding = np.exp(np.minimum(4 * (at - 2), 20))
    return lrs, 2.3 - 1.8 / (1 + np.exp(-3 * at)) + exploding + noise * np.random.default_rng(seed).normal(size=count)


def real(curve: LRCurve) -> tuple[np.ndarray, np.ndarray]:
    return curve.lrs[curve.trusted], curve.smoothed[curve.trusted]


CURVES = {
    "sgd": lambda: real(finder_curve(0, fo.sgd(0.1))),
    "sgd with momentum": lambda: real(finder_curve(1, fo.sgd(0.1, momentum=0.9))),
    "adamw": lambda: real(finder_curve(2, fo.adamw())),
    "adamw, raw losses": lambda: real(replace(finder_curve(3, fo.adamw()), smooth=0.0)),
    "lamb, long": lambda: real(finder_curve(4, fo.lamb(0.1), max_iter=250, stop_factor=4.0)),
    "synthetic": lambda: synthetic(1e-3, 0.0, 0),
    "a little noise": lambda: synthetic(1e-2, 0.01, 1),
    "much noise": lambda: synthetic(1e-4, 0.3, 2),
    "short": lambda: synthetic(1e-3, 0.05, 3, count=20),
    "falls to the end": lambda: synthetic(1e1, 0.0, 4),
}


@pytest.mark.parametrize("name", CURVES)
def test_suggestions_are_those_of_fastai(fastai, name):
    lrs, losses = CURVES[name]()
    theirs = [torch.from_numpy(lrs), torch.from_numpy(losses), len(lrs)]
    for rule, ours in suggest(lrs, losses)._asdict().items():
        want, _ = getattr(fastai, rule)(*theirs)
        assert ours == pytest.approx(want, rel=1e-12), rule
        assert ours is not None


def test_suggestions_on_random_curves_are_those_of_fastai_where_there_are_any(fastai):
    answers = dict.fromkeys(RULES, 0)
    for seed in range(200):
        generator = np.random.default_rng(seed)
        count = int(generator.integers(18, 60))
        lrs, losses = np.geomspace(1e-5, 1, count), generator.normal(size=count).cumsum() * 0.05
        for rule, ours in suggest(lrs, losses)._asdict().items():
            if ours is not None:
                want, _ = getattr(fastai, rule)(torch.from_numpy(lrs), torch.from_numpy(losses), count)
                assert ours == pytest.approx(want, rel=1e-12), (seed, rule)
                answers[rule] += 1
    assert min(answers.values()) > 100


NONE = Suggestions(None, None, None, None)


@pytest.mark.parametrize(
    ("losses", "want"),
    [
        ([], NONE),
        ([1.0], NONE),
        ([math.nan] * 30, NONE),
        ([math.inf] * 30, NONE),
        ([1.0] * 30, NONE),
        ([*np.linspace(1, 2, 30)], NONE),
        ([1.0, 2.0], NONE),
        # two points: nothing but which is lower
        ([2.0, 1.0], Suggestions(None, 0.2, 1.0, None)),
        # what comes after a NaN does not count
        ([2.0, 1.0, math.nan, *[0.1] * 30], Suggestions(None, 0.2, 1.0, None)),
    ],
)
def test_curves_without_an_answer(losses, want):
    lrs = np.arange(1.0, len(losses) + 1)
    assert suggest(lrs, losses) == want
    curve = LRCurve(lrs, np.array(losses, dtype=np.float64), "end", 0.98, 100)
    assert curve.suggestions == NONE
    assert "LRCurve" in repr(curve)
    if losses:
        curve.plot().figure.canvas.draw()  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("count", "stopped", "want"),
    [
        (100, "end", slice(10, 95)),
        (80, "diverged", slice(10, 75)),
        (80, "not finite", slice(10, 79)),
        (98, "not finite", slice(10, 95)),
        (4, "diverged", slice(10, 0)),
    ],
)
def test_what_the_suggestions_look_at_is_what_fastai_looks_at(count, stopped, want):
    """``[num_it // 10 : -5]`` of the steps taken, which with a NaN go on to the end, and then up to the NaN."""
    assert LRCurve(np.ones(count), np.ones(count), stopped, 0.98, 100).trusted == want


def test_suggestions_want_two_lists_of_a_length():
    with pytest.raises(ValueError, match="a loss for each learning rate"):
        suggest([0.1, 0.2], [1.0])


# fastai's own finder


class Run:
    """A fastai Learner on the same network and batches, which keeps the exact loss of every step."""

    def __init__(self, fastai: Any, opt_func: Any, folder: Path, groups: bool):
        self.losses: list[float] = []

        def loss(scores: Tensor, labels: Tensor) -> Tensor:
            exact = cross_entropy(scores, labels)
            self.losses.append(exact.item())
            return exact.float()  # which fastai's moving average takes; the network stays in float64

        loaders = [fastai.DataLoader(data(96), bs=16, num_workers=0, shuffle=False) for _ in range(2)]
        split = lambda model: fastai.L(model[0], model[1], model[3]).map(fastai.params)
        self.learn = fastai.Learner(
            fastai.DataLoaders(*loaders, device="cpu"), net(), loss, opt_func, path=folder,
            **{"splitter": split} if groups else {},
        )  # fmt: skip
        self.learn.remove_cb(fastai.ProgressCallback)
        self.learn.logger = lambda row: None

    def lr_find(self, **options: Any) -> Any:
        rules = [getattr(sys.modules["fastai.callback.schedule"], rule) for rule in RULES]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "numpy.core is deprecated", DeprecationWarning)
            return self.learn.lr_find(show_plot=False, suggest_funcs=rules, **options)


@pytest.mark.parametrize("groups", [False, True], ids=["one group", "three groups"])
@pytest.mark.parametrize(
    ("optimizer", "tx", "high"),
    [
        ("SGD", fo.sgd(0.1), 100.0),
        ("SGD", fo.sgd(0.1), 1e7),
        ("Adam", fo.adamw(0.1, beta2=0.99, eps=1e-5, weight_decay=0.01), 10.0),
    ],
    ids=["sgd", "sgd until it explodes", "adam"],
)
def test_fastai_finds_the_same(fastai, tmp_path, optimizer, tx, high, groups):
    adam = optimizer == "Adam"
    theirs = Run(fastai, partial(getattr(fastai, optimizer), **{"wd": 0.01} if adam else {}), tmp_path, groups)
    found = theirs.lr_find(end_lr=high)
    model = net()
    parts = [[*model[0].parameters()], [*model[1].parameters()], [*model[3].parameters()]]
    ours = fo.StatefulOptimizer(parts if groups else model.parameters(), tx)
    ours.mark([*model[1].parameters(), model[3].bias], do_wd=False)
    batches = DataLoader(data(96), batch_size=16)
    curve = lr_find(Learner(model, ours, cross_entropy), batches, max_lr=high, stop_factor=4.0)
    recorder = theirs.learn.recorder
    assert curve.lrs.tolist() == [float(lr) for lr in recorder.lrs]
    np.testing.assert_allclose(curve.losses, theirs.losses, rtol=1e-8 if high == 10.0 else 1e-12)
    # fastai averages in float32
    np.testing.assert_allclose(curve.smoothed, [loss.item() for loss in recorder.losses], rtol=1e-5)
    assert curve.stopped == ("end" if len(curve.lrs) == 100 else "diverged")
    for rule in RULES:
        assert getattr(curve.suggestions, rule) == pytest.approx(getattr(found, rule), rel=1e-6), rule


# Pictures and files


def test_the_picture(tmp_path):
    curve = finder_curve(1, fo.sgd(0.1, momentum=0.9), max_lr=1e4)
    ax = curve.plot()
    assert (ax.get_xscale(), ax.get_xlabel(), ax.get_ylabel()) == ("log", "learning rate", "loss")
    labels = ax.get_legend_handles_labels()[1]
    assert labels[:2] == ["smoothed loss", "loss"]
    assert labels[2:] == [f"{name} {lr:.1e}" for name, lr in curve.suggestions._asdict().items()]
    lines = dict(zip(labels, ax.get_lines(), strict=True))
    np.testing.assert_array_equal(lines["smoothed loss"].get_xydata(), np.stack([curve.lrs, curve.smoothed], 1))
    for name, lr in curve.suggestions._asdict().items():
        point: Any = lines[f"{name} {lr:.1e}"].get_xydata()
        assert point[0, 0] == lr
        assert np.abs(curve.smoothed - point[0, 1]).min() < np.ptp(curve.smoothed[curve.trusted])
    # the loss explodes, the picture does not
    low, high = ax.get_ylim()
    assert curve.losses.max() > 100 * high
    seen = curve.smoothed[curve.trusted]
    assert low < seen.min() < seen[0] < high < 3 * seen[0]
    heights = [np.asarray(line.get_ydata())[0] for line in ax.get_lines()[2:]]
    assert low < min(heights) <= max(heights) <= high
    both = curve.plot(ax, suggestions=False, raw=False, label="again")
    assert both is ax
    assert ax.get_ylim() == (low, high)  # the raw losses of the first are still in there
    assert ax.get_legend_handles_labels()[1][len(labels) :] == ["again"]
    ax.figure.savefig(tmp_path / "lr_find.png")  # pyright: ignore[reportAttributeAccessIssue]


def test_the_file(tmp_path):
    curve = finder_curve(0, fo.sgd(0.1), max_iter=20)
    curve.to_csv(tmp_path / "curve.csv")
    with (tmp_path / "curve.csv").open() as file:
        rows = [*csv.DictReader(file)]
    assert [*rows[0]] == ["step", "lr", "loss", "smoothed"]
    for name, want in {
        "step": np.arange(20),
        "lr": curve.lrs,
        "loss": curve.losses,
        "smoothed": curve.smoothed,
    }.items():
        assert [float(row[name]) for row in rows] == want.tolist()
