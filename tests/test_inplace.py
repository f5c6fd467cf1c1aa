"""Steps in place: StatefulOptimizer eagerly, in pieces of every kind, and compiled over flat buffers."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from typing import Any, cast

import pytest
import torch
from registry import BY_ID, ROWS, Row, make_grads, make_params, rows
from side_by_side import RTOL, data, net, params_close, train_step
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import functopt as fo
from functopt import StatefulOptimizer, eager, optimizers, pieces, tree
from functopt.param_state import select
from functopt.sweep.memory import _Counting
from functopt.tree import arithmetic

COMPILE = {"backend": "aot_eager"}  # the graph and its donation; what inductor makes of it is tested in one place


def flat_dict(params: Any) -> dict[str, Tensor]:
    return {path.replace(".", "_"): leaf for path, leaf in tree.leaves_with_paths(params)}


def mask_by_ndim(params: Any) -> Any:
    return {key: leaf.ndim > 1 for key, leaf in params.items()}


def steps(optimizer: StatefulOptimizer, params: dict[str, Tensor], grads: list[Any]) -> None:
    for grad in grads:
        for key, g in flat_dict(grad).items():
            params[key].grad = g.clone()
        optimizer.step(value=torch.ones((), dtype=torch.float64))


def pure(tx: fo.Transform, grads: list[Any]) -> tuple[Any, Any]:
    params = flat_dict(make_params())
    state = tx.init(params)
    for grad in grads:
        params, state = tx.update(flat_dict(grad), state, params, value=torch.ones((), dtype=torch.float64))
    return params, state


def parameters() -> dict[str, Any]:
    return {key: nn.Parameter(leaf.clone()) for key, leaf in flat_dict(make_params()).items()}


def check(optimizer: StatefulOptimizer, params: dict[str, Tensor], want: Any, state: Any) -> None:
    for key, leaf in want.items():
        torch.testing.assert_close(params[key].detach(), leaf, rtol=1e-11, atol=1e-13, msg=lambda m, k=key: f"{k}: {m}")
    by_name = {name for (_, name), _ in optimizer._inner.entries().items()}
    assert bool(by_name) == bool(tree.leaves(state))


# (PIECE, SMALL): everything gathered, leaf by leaf, the larger leaves in slices, gathered ones beside whole ones
PIECES = [(1 << 18, 1 << 14), (1, 0), (5, 0), (7, 3), (20, 12)]


@rows("inplace")
@pytest.mark.parametrize("sizes", PIECES, ids=str)
def test_eager_steps_equal_the_pure_function(row: Row, sizes: tuple[int, int], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(eager, "PIECE", sizes[0])
    monkeypatch.setattr(eager, "SMALL", sizes[1])
    monkeypatch.setattr(pieces, "SAMPLE", 2)
    tx, grads, params = row.make(), make_grads(steps=4), parameters()
    optimizer = StatefulOptimizer(params.items(), tx)
    steps(optimizer, params, grads)
    check(optimizer, params, *pure(tx, grads))


@rows("inplace")
def test_stacks_equal_the_pure_function(row: Row, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(eager, "FEW", 1)  # so that every parameter that can be is in a stack
    tx, grads, params = row.make(), make_grads(steps=4), parameters()
    optimizer = StatefulOptimizer(params.items(), tx)
    steps(optimizer, params, grads)
    check(optimizer, params, *pure(tx, grads))


def test_pieces_are_what_they_should_be(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(eager, "PIECE", 8)
    monkeypatch.setattr(eager, "SMALL", 3)
    step = lambda tx: cast(Any, StatefulOptimizer(parameters().items(), tx)._step)
    kinds = lambda tx: [type(p).__name__ for p in step(tx).route.pieces]
    assert kinds(fo.adamw()) == ["Gathered", "Slices", "Slices"]  # 3 and 1, then 12 twice
    assert kinds(fo.lamb()) == ["Gathered", "Rows", "Rows"]
    masked = {name: name.endswith("weight") for name in parameters()}
    assert kinds(fo.lamb(mask=masked)) == ["Gathered", "Rows", "Rows"]
    assert kinds(fo.adamw(mask=masked)) == ["Gathered", "Rows", "Rows"]
    told = fo.stateless_with_tree_map(lambda g, p: g / p.norm())
    assert kinds(fo.chain(told, fo.lamb())) == ["Whole"] * 4  # who knows what a function does
    assert kinds(fo.adafactor()) == ["Whole", "Whole", "Rows", "Rows"]
    monkeypatch.setattr(eager, "FEW", 1)
    assert kinds(fo.adafactor()) == ["Stack", "Stack", "Rows", "Rows"]
    assert kinds(fo.adafactor(mask=masked)) == ["Whole", "Whole", "Rows", "Rows"]
    assert kinds(fo.chain(fo.adamw(), fo.clip_by_global_norm(1.0))) == ["Whole"]  # one piece: the norm comes last


@pytest.mark.parametrize("id", ["adamw/masked", "adafactor", "lookahead/lamb", "chain/clipped_adamw"])
def test_compiled_steps_equal_the_pure_function(id: str):
    row = BY_ID.get(id) or next(row for row in ROWS if row.id.startswith(id.split("/")[0]))
    tx, grads, params = row.make(), make_grads(steps=3), parameters()
    optimizer = StatefulOptimizer(params.items(), tx, compile=COMPILE)
    steps(optimizer, params, grads)
    check(optimizer, params, *pure(tx, grads))


def test_compiled_by_inductor():
    """The whole way once: float64 groups, a scheduler, missing gradients, one graph for all that."""
    from torch._dynamo.utils import counters

    ours, theirs = net(), net()
    groups = lambda model: [{"params": model[0].parameters()}, {"params": model[2].parameters(), "lr": 3e-3}]
    optimizer = StatefulOptimizer(groups(ours), fo.adamw(), compile=True)
    reference = torch.optim.AdamW(groups(theirs))
    pair = [(ours, optimizer), (theirs, reference)]
    schedulers = [
        torch.optim.lr_scheduler.OneCycleLR(o, [1e-2, 3e-2], total_steps=12, cycle_momentum=False) for _, o in pair
    ]
    counters.clear()
    for i in range(12):
        for (model, opt), scheduler in zip(pair, schedulers, strict=True):
            train_step(model, opt, i)
            scheduler.step()
    params_close(ours, theirs)
    assert counters["stats"]["unique_graphs"] == 1


# Whatever a training loop does to parameters and gradients


class Loop:
    """The same steps with the compiled and the eager optimizer."""

    def __init__(self, tx: fo.Transform | None = None, compile: Any = COMPILE) -> None:
        tx = tx or fo.chain(fo.clip_by_global_norm(0.5), fo.adamw(1e-2))
        self.models = [net(), net()]
        self.optimizers = [
            StatefulOptimizer(self.models[0].named_parameters(), tx, compile=compile),
            StatefulOptimizer(self.models[1].named_parameters(), tx),
        ]

    def both(self, do: Any) -> None:
        for model, optimizer in zip(self.models, self.optimizers, strict=True):
            do(model, optimizer)

    def train(self, start: int, stop: int) -> None:
        for i in range(start, stop):
            self.both(lambda model, optimizer, i=i: train_step(model, optimizer, i))
        self.agree()

    def agree(self) -> None:
        params_close(*self.models)
        ours, theirs = (o.state_dict()["state"] for o in self.optimizers)
        for (path, x), y in zip(tree.leaves_with_paths(ours), tree.leaves(theirs), strict=True):
            torch.testing.assert_close(x, y, rtol=RTOL, atol=1e-13, msg=lambda m, path=path: f"{path}: {m}")


def backward(model: nn.Module, step: int) -> None:
    x, y = data(step)
    nn.functional.cross_entropy(model(x), y).backward()


def test_parameters_and_gradients_are_views_of_buffers():
    loop = Loop()
    loop.train(0, 2)
    model, step = loop.models[0], cast(Any, loop.optimizers[0]._step)
    for key, param in model.named_parameters():
        assert param.data_ptr() == step.param_views[key].data_ptr()
        assert param.grad.data_ptr() == step.grad_views[key].data_ptr()
    backward(model, 2)  # accumulates where it is
    assert all(p.grad.data_ptr() == step.grad_views[key].data_ptr() for key, p in model.named_parameters())


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad(set_to_none: bool):
    loop = Loop()
    for i in range(3):
        loop.both(
            lambda model, optimizer, i=i: (backward(model, i), optimizer.step(), optimizer.zero_grad(set_to_none))
        )
        assert all((p.grad is None) == set_to_none for p in loop.models[0].parameters())
    loop.agree()


def test_gradients_accumulate_and_are_clipped():
    loop = Loop()

    def step(model: nn.Module, optimizer: Any) -> None:
        optimizer.zero_grad()
        for i in range(3):
            backward(model, i)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()

    for _ in range(2):
        loop.both(step)
    loop.agree()


def test_a_parameter_without_a_gradient_is_left_alone():
    loop = Loop()
    loop.train(0, 2)

    def step(model: Any, optimizer: Any) -> None:
        optimizer.zero_grad()
        backward(model, 7)
        model[2].bias.grad = None
        before = model[2].bias.detach().clone(), copy.deepcopy(optimizer.state[model[2].bias])
        optimizer.step()
        assert torch.equal(model[2].bias, before[0])
        assert all(torch.equal(t, before[1][name]) for name, t in optimizer.state[model[2].bias].items())

    loop.both(step)
    loop.agree()
    loop.train(2, 4)


@pytest.mark.parametrize("compile", [False, COMPILE], ids=["eager", "compiled"])
@pytest.mark.parametrize("piece", [1 << 18, 1])
def test_a_norm_is_that_of_the_parameters_with_a_gradient(piece: int, compile: Any, monkeypatch: pytest.MonkeyPatch):
    """Also where the momentum of the others comes before it."""
    monkeypatch.setattr(eager, "PIECE", piece)
    tx = fo.chain(fo.trace(0.9), fo.clip_by_global_norm(0.1), fo.scale_by_lr(0.1))
    params, (first, second) = parameters(), make_grads(steps=2)
    optimizer = StatefulOptimizer(params.items(), tx, compile=compile)
    steps(optimizer, params, [first])
    absent, *others = params
    want, state = pure(tx, [first])
    grads = {key: flat_dict(second)[key] for key in others}
    new, _ = tx.update(grads, select(state, want.keys(), {*others}), {key: want[key] for key in others})
    for key in params:
        params[key].grad = grads.get(key)
    optimizer.step()
    check(optimizer, params, {**want, **new}, state)
    assert torch.equal(params[absent], want[absent])


def test_the_model_is_loaded_moved_and_replaced():
    loop = Loop()
    loop.train(0, 2)
    other = net(seed=5).state_dict()
    loop.both(lambda model, optimizer: model.load_state_dict(other))
    loop.train(2, 4)

    def replace(model: Any, optimizer: Any) -> None:
        for p in model.parameters():
            p.data = p.data.clone() * 0.9

    loop.both(replace)
    loop.train(4, 6)
    loop.both(lambda model, optimizer: nn.init.ones_(model[2].bias))
    loop.train(6, 8)


def extend(model: Any, optimizer: Any) -> None:
    model.add_module("3", nn.Linear(3, 3).double())
    nn.init.eye_(model[3].weight)
    nn.init.zeros_(model[3].bias)
    optimizer.add_param_group({"params": [(f"3.{n}", p) for n, p in model[3].named_parameters()], "lr": 1e-3})


def test_the_optimizer_is_saved_loaded_copied_and_extended():
    loop = Loop()
    loop.train(0, 2)
    saved = loop.optimizers[0].state_dict()
    loop.train(2, 4)
    loop.both(lambda model, optimizer: optimizer.load_state_dict(saved))
    loop.train(4, 6)

    model, optimizer = pickle.loads(pickle.dumps((loop.models[0], loop.optimizers[0])))
    loop.models[0], loop.optimizers[0] = model, optimizer
    loop.train(6, 8)

    loop.both(extend)
    loop.train(8, 10)


def test_buffers_go_with_the_optimizer():
    model = net()
    optimizer: Any = StatefulOptimizer(model.parameters(), fo.sgd(0.1), compile=COMPILE)
    buffers = weakref.ref(optimizer._step)
    del optimizer
    gc.collect()
    assert buffers() is None
    backward(model, 0)
    assert all(p.grad is not None for p in model.parameters())


def test_which_gradients_are_missing_is_data():
    from torch._dynamo.utils import counters

    loop = Loop()
    counters.clear()
    for i, missing in enumerate([None, "0.bias", "2.weight", None, "2.bias"]):

        def step(model: Any, optimizer: Any, i: int = i, missing: Any = missing) -> None:
            optimizer.zero_grad()
            backward(model, i)
            if missing:
                model.get_parameter(missing).grad = None
            optimizer.step()

        loop.both(step)
    loop.agree()
    assert counters["stats"]["unique_graphs"] == 2  # with all, and with some


# Memory


class Live(TorchDispatchMode):
    """Counts the bytes of tensors that are made while it is on, and are alive at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {t.untyped_storage()._cdata for t in tree.leaves((args, kwargs or {})) if isinstance(t, Tensor)}
        out = func(*args, **(kwargs or {}))
        for t in tree.leaves(out):
            storage = t.untyped_storage() if isinstance(t, Tensor) else None
            if storage is not None and storage._cdata not in before and storage._cdata not in self.seen:
                self._count(t, storage)
        return out

    def _count(self, t: Tensor, storage: Any) -> None:
        size, number = storage.nbytes(), storage._cdata
        self.seen.add(number)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(t, self._free, size, number)

    def _free(self, size: int, number: int) -> None:
        self.now -= size
        self.seen.discard(number)


@pytest.mark.parametrize("id", ["adamw", "nadam", "sgd"])
def test_an_eager_step_holds_little_twice(id: str):
    leaf = torch.Size([2048, 1024])
    params = [nn.Parameter(torch.ones(leaf)) for _ in range(4)]
    optimizer = StatefulOptimizer(params, getattr(fo, id)())
    for p in params:
        p.grad = torch.ones(leaf)
    with Live() as live:
        optimizer.step()
    # a few buffers for a slice, one slice at a time, and all that the recorded sample makes
    assert 0 < live.peak <= 4 * (3 * eager.PIECE + 16 * pieces.SAMPLE) <= leaf.numel() * 4


# Small parameters of one shape, where a rule needs the shape

ALIKE = {f"w{i}": (4, 4) for i in range(6)} | {f"b{i}": (3,) for i in range(5)} | {f"s{i}": () for i in range(4)}
STEEP = {"w0", "w1", "b0"}  # a group of their own, so that there are two values of lr in a stack


@fo.link(scope="matrix")
def by_rows(power=0.5, *, looks: bool = False) -> Any:
    """Divide by a power of the mean magnitude of each row."""

    def transform(updates, state, params, power):
        def one(u, power):
            seen.append(u.shape)
            if looks and u.sum() == 0:  # one value, of which a stack has many
                return u
            return u / (u.abs().mean(-1, keepdim=True) if u.ndim else u.abs()) ** power

        return tree.map(one, updates, power), state

    return transform


seen: list[Any] = []


def alike(make: Any) -> tuple[StatefulOptimizer, dict[str, nn.Parameter]]:
    generator = torch.Generator().manual_seed(0)
    shapes = {**ALIKE, "alone": (2, 5)}.items()
    params = {key: nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64)) for key, shape in shapes}
    group = lambda steep: [(key, param) for key, param in params.items() if (key in STEEP) == steep]
    return StatefulOptimizer([{"params": group(True), "lr": 0.05}, {"params": group(False)}], make()), params


def kinds(optimizer: StatefulOptimizer) -> list[str]:
    return [type(piece).__name__ for piece in cast(Any, optimizer._step).route.pieces]


@pytest.mark.parametrize("without", [(), ("w0", "w4", "b1", "b3", "alone")], ids=["all", "gaps"])
@pytest.mark.parametrize("make", [fo.adafactor, fo.sm3, fo.soap])
def test_small_parameters_of_one_shape_are_done_together(
    make: Any, without: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
):
    optimizer, params = alike(make)
    assert kinds(optimizer) == ["Stack", "Stack", "Stack", "Whole"]
    monkeypatch.setattr(eager, "FEW", 100)
    one_by_one, others = alike(make)
    assert kinds(one_by_one) == ["Whole"] * len(params)
    monkeypatch.undo()
    for step in range(4):
        for i, (key, param) in enumerate(params.items()):
            given = step != 1 or key not in without
            param.grad = others[key].grad = (param + step + i).detach().cos() if given else None
        optimizer.step()
        one_by_one.step()
    for key, param in params.items():
        torch.testing.assert_close(param, others[key], rtol=1e-11, atol=1e-13)
    for (entry, a), b in zip(optimizer._inner.entries().items(), one_by_one._inner.entries().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13, msg=lambda m, entry=entry: f"{entry}: {m}")


def test_a_rule_is_called_once_for_a_stack_or_by_itself_if_it_looks_at_values():
    chain = lambda **kwargs: fo.chain(by_rows(**kwargs), fo.ema(0.9), fo.scale_by_lr(0.1))
    optimizers = [
        StatefulOptimizer([torch.ones(4, 4) for _ in range(6)], chain(looks=looks)) for looks in (False, True)
    ]
    for optimizer, calls in zip(optimizers, ([1, 1], [1 + 6, 6]), strict=True):
        for count in calls:
            for param in optimizer.param_groups[0]["params"]:
                param.grad = torch.arange(16.0).view(4, 4)
            seen.clear()
            optimizer.step()
            assert len(seen) == count
    for a, b in zip(*(optimizer.param_groups[0]["params"] for optimizer in optimizers), strict=True):
        assert torch.equal(a, b)


# Large parameters, for rules that need more than an entry: in slices along their first axis

LARGE = {"w": (6, 40), "v": (6, 40), "kernel": (7, 3, 5, 2), "b": (60,), "wide": (2, 90), "one": (1, 70)}


def only_matrices(params: Any) -> Any:
    return {key: param.ndim > 1 for key, param in params.items()}


def labels(params: Any) -> Any:
    return {key: "a" if key in ("w", "b") else "b" for key in params}


TAPES = {
    # how many recordings: one for two of a shape; of a single row none; with a mask, one for each parameter
    "adafactor": (lambda: fo.adafactor(0.1, weight_decay=0.1), 4),
    "adafactor, optax": (lambda: fo.adafactor(0.1, form="optax", min_dim_size_to_factor=2), 4),
    "adafactor, masked": (lambda: fo.adafactor(0.1, weight_decay=0.1, mask=only_matrices), 5),
    "lamb": (lambda: fo.lamb(0.1, weight_decay=0.1), 5),
    "lamb, masked": (lambda: fo.lamb(0.1, weight_decay=0.1, mask=only_matrices), 5),
    "adamw, masked": (lambda: fo.adamw(0.1, weight_decay=0.1, mask={key: key != "b" for key in LARGE}), 5),
    "sm3": (lambda: fo.sm3(0.1), 4),
    "adaptive clipping": (lambda: fo.chain(fo.adaptive_grad_clip(0.01), fo.sgd(0.1)), 4),
    "after a norm": (lambda: fo.chain(fo.clip_by_global_norm(0.1), fo.adafactor(0.1)), 4),
    "of parts": (lambda: fo.partition({"a": fo.adam(0.1), "b": fo.adafactor(0.1)}, labels), 5),
}


def large(tx: fo.Transform, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, dict[str, nn.Parameter], list[Any]]:
    """Return an optimizer of some large parameters, these, and a list that grows with each recording."""
    recorded, real = [], pieces.record_by_rows
    monkeypatch.setattr(pieces, "record_by_rows", lambda *args: recorded.append(real(*args)) or recorded[-1])
    monkeypatch.setattr(eager, "PIECE", 90)
    monkeypatch.setattr(eager, "SMALL", 50)
    generator = torch.Generator().manual_seed(0)
    drawn = {key: torch.randn(shape, generator=generator, dtype=torch.float64) for key, shape in LARGE.items()}
    params = {key: nn.Parameter(leaf) for key, leaf in drawn.items()}
    return StatefulOptimizer(params.items(), tx), params, recorded


@pytest.mark.parametrize("id", TAPES)
def test_large_parameters_are_done_in_slices(id: str, monkeypatch: pytest.MonkeyPatch):
    make, count = TAPES[id]
    optimizer, params, recorded = large(tx := make(), monkeypatch)
    want = {key: param.detach().clone() for key, param in params.items()}
    state = tx.init(want)
    for step in range(4):
        for key, param in params.items():
            param.grad = (want[key] + step).cos()
        optimizer.step()
        want, state = tx.update({key: param.grad for key, param in params.items()}, state, want)
    for key, param in params.items():
        torch.testing.assert_close(param.detach(), want[key], rtol=1e-11, atol=1e-13, msg=lambda m, k=key: f"{k}: {m}")
    assert bool(optimizer._inner.entries()) == bool(tree.leaves(state))
    assert len(recorded) == count
    assert None not in recorded


def test_what_changes_from_step_to_step_is_recorded_as_an_input(monkeypatch: pytest.MonkeyPatch):
    optimizer, params, recorded = large(tx := fo.adafactor(), monkeypatch)
    want = {key: param.detach().clone() for key, param in params.items()}
    state = tx.init(want)
    counts = []
    for lr, decay in [(0.1, 0.0), (0.1, 0.0), (0.2, 0.0), (0.3, 0.0), (0.4, 0.1), (0.5, 0.2), (0.1, 0.0)]:
        optimizer.set_hypers(lr=lr, weight_decay=decay)
        for key, param in params.items():
            param.grad = want[key].sin()
        optimizer.step()
        want, state = tx.update({k: p.grad for k, p in params.items()}, state, want, {"lr": lr, "weight_decay": decay})
        counts.append(len(recorded))
    for key, param in params.items():
        torch.testing.assert_close(param.detach(), want[key], rtol=1e-11, atol=1e-13)
    assert counts == [4, 4, 8, 8, 12, 12, 12]


def test_what_cannot_be_recorded_is_tried_once(monkeypatch: pytest.MonkeyPatch):
    optimizer, params, recorded = large(fo.chain(by_rows(looks=True), fo.scale_by_lr(0.1)), monkeypatch)
    before = {key: param.detach().clone() for key, param in params.items()}
    for step in range(3):
        optimizer.set_hypers(lr=0.1 + step)
        for param in params.values():
            param.grad = torch.ones_like(param)
        optimizer.step()
    assert recorded == [None] * 4
    for key, param in params.items():
        torch.testing.assert_close(param.detach(), before[key] - 0.1 - 1.1 - 2.1)


def test_extras_that_are_numbers_are_inputs(monkeypatch: pytest.MonkeyPatch):
    @fo.link(scope="matrix")
    def by_loss() -> Any:
        def transform(updates, state, params, value=None):
            return tree.map(lambda u: u * value / u.abs().amax(-1, keepdim=True), updates), state

        return transform

    optimizer, params, recorded = large(fo.chain(by_loss(), fo.scale_by_lr(1.0)), monkeypatch)
    before = {key: param.detach().clone() for key, param in params.items()}
    for value in (torch.tensor(1.0), torch.tensor(2.0), 3.0, 4.0):
        for param in params.values():
            param.grad = torch.full_like(param, 2.0)
        optimizer.step(value=value)
    assert len(recorded) == 2 * 4  # for a tensor and for a number
    assert None not in recorded
    for key, param in params.items():
        torch.testing.assert_close(param.detach(), before[key] - 10.0)


def test_extras_that_nobody_takes_are_left_out(monkeypatch: pytest.MonkeyPatch):
    optimizer, params, recorded = large(fo.adafactor(), monkeypatch)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = torch.stack([param.square().sum() for param in params.values()]).sum()
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
    assert len(recorded) == 4
    assert None not in recorded


def test_leaves_that_are_alike_under_a_mask_share_what_was_recorded(monkeypatch: pytest.MonkeyPatch):
    optimizer, params, recorded = large(fo.adamw(weight_decay=0.1, mask=only_matrices), monkeypatch)
    for param in params.values():
        param.grad = torch.ones_like(param)
    optimizer.step()
    tapes = {id(r.tape) for known in optimizer._step.recordings._known.values() for r in known}
    assert (len(recorded), len(tapes)) == (5, 2)  # those that decay, of whatever shape, and those that do not


@pytest.mark.parametrize("make", [fo.adamw, fo.lamb, fo.adafactor, lambda lr: fo.adamw(lr, mask=only_matrices)])
def test_a_parameter_is_moved_to_another_layout(make: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(eager, "PIECE", 64)
    monkeypatch.setattr(eager, "SMALL", 8)
    model, tx = nn.Conv2d(4, 6, 3).double(), make(0.1)
    optimizer = StatefulOptimizer(model.named_parameters(), tx)
    want = {key: param.detach().clone() for key, param in model.named_parameters()}
    state = tx.init(want)
    for step in range(4):
        if step == 2:
            model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
            assert not model.weight.is_contiguous()
        for key, param in model.named_parameters():
            param.grad = want[key].cos() + step
        optimizer.step()
        want, state = tx.update({key: param.grad for key, param in model.named_parameters()}, state, want)
    for key, param in model.named_parameters():
        torch.testing.assert_close(param.detach(), want[key], rtol=1e-11, atol=1e-13)


# Those that look at all parameters at once, and those that multiply matrices
HOLDS_MORE = {"dadapt_adamw", "galore", "momo", "momo_adam", "muon", "noisy_sgd", "polyak_sgd", "prodigy"}
NEEDS_MORE_THAN_GRADIENTS = {"dpsgd", "lbfgs", "nonlinear_cg", "sophia"}


def test_eager_steps_hold_one_temporary_for_each_tensor_of_the_state(monkeypatch: pytest.MonkeyPatch):
    for module, name, value in [(eager, "PIECE", 512), (eager, "SMALL", 16), (pieces, "SAMPLE", 256)]:
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(arithmetic, "CHUNK", 512)  # the same for norms
    made = {name: getattr(fo, name) for name in optimizers.__all__ if name not in NEEDS_MORE_THAN_GRADIENTS}
    more = set()
    for name, make in made.items():
        params = [nn.Parameter(torch.randn(shape)) for shape in ((128, 64), (64, 128))]
        optimizer, counting = StatefulOptimizer(params, make()), _Counting()
        for _ in range(2):
            for param in params:
                param.grad = torch.randn(param.shape)
            with counting:
                optimizer.step(value=torch.tensor(1.0))
        state = sum(leaf.nbytes for leaf in optimizer._inner.entries().values())
        if counting.most > max(params[0].nbytes, state) * 1.05:
            more.add(name)
    assert more == HOLDS_MORE
    assert len(made) > 50


# Compiled, where a rule needs shapes: parameters of one shape in a stack


def stacked_pair(tx: fo.Transform) -> tuple[list[StatefulOptimizer], list[dict[str, nn.Parameter]]]:
    """Return the compiled and the eager optimizer of the same parameters, in two groups that share shapes."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"a": (4, 4), "b": (4, 4), "c": (6,), "d": (6,), "e": (), "f": (3, 2, 2), "g": (4, 4)}.items()
    drawn = {key: torch.randn(shape, generator=generator, dtype=torch.float64) for key, shape in shapes}
    both = [{key: nn.Parameter(leaf.clone()) for key, leaf in drawn.items()} for _ in range(2)]
    groups = lambda params: [
        {"params": [(key, params[key]) for key in "ac"], "lr": 0.05},
        {"params": [(key, params[key]) for key in "bdefg"]},
    ]
    options = [COMPILE, False]
    return [StatefulOptimizer(groups(p), tx, compile=c) for p, c in zip(both, options, strict=True)], both


def give_gradients(both: list[dict[str, nn.Parameter]], seed: int, without: str = "") -> None:
    generator = torch.Generator().manual_seed(seed)
    for key, param in both[0].items():
        grad = torch.randn(param.shape, generator=generator, dtype=torch.float64)
        for params in both:
            params[key].grad = None if key in without else grad.clone()


@pytest.mark.parametrize(
    "make",
    [
        lambda: fo.adafactor(weight_decay=0.1),
        lambda: fo.adafactor(form="optax", momentum=0.9, min_dim_size_to_factor=2),
        lambda: fo.soap(precondition_frequency=2),
        fo.sm3,
    ],
)
def test_stacks_are_compiled_once_and_equal_the_eager_steps(make: Any):
    from torch._dynamo.utils import counters

    optimizers_, both = stacked_pair(make())
    step = cast(Any, optimizers_[0]._step)
    counters.clear()
    for i, without in enumerate(["", "", "bd", "", "c", "gefabd", "", ""]):
        give_gradients(both, i, without)
        for optimizer in optimizers_:
            optimizer.param_groups[1]["lr"] = 0.05 if i < 1 else 0.01 * i
            optimizer.step()
    for key, param in both[0].items():
        torch.testing.assert_close(param, both[1][key], rtol=RTOL, atol=1e-13)
        assert param.data_ptr() == step.param_views[key].data_ptr()
    ours, theirs = (optimizer._inner.entries() for optimizer in optimizers_)
    torch.testing.assert_close(ours, theirs, rtol=RTOL, atol=1e-12)
    assert len(step.stacks.params) == 4
    assert counters["stats"]["unique_graphs"] == 3  # one lr, several, and gaps


def test_what_cannot_be_stacked_is_compiled_leaf_by_leaf():
    chain = lambda **kwargs: fo.chain(by_rows(**kwargs), fo.ema(0.9), fo.scale_by_lr(0.1))
    stacks = lambda tx: cast(Any, StatefulOptimizer(parameters().items(), tx, compile=COMPILE)._step).stacks
    assert stacks(chain()) is not None
    assert stacks(chain(looks=True)) is None
    assert stacks(fo.muon()) is None  # which leaf is a matrix of the inside is a mask
    assert stacks(fo.chain(fo.adafactor(), fo.clip_by_global_norm(1.0))) is None
    assert stacks(fo.adamw()) is None  # packed


def test_stacks_outlast_what_training_loops_do():
    loop = Loop(fo.adafactor(1e-2))
    loop.train(0, 2)
    saved = loop.optimizers[0].state_dict()
    other = net(seed=5).state_dict()
    loop.both(lambda model, optimizer: model.load_state_dict(other))
    loop.train(2, 4)
    loop.both(lambda model, optimizer: optimizer.load_state_dict(saved))
    loop.train(4, 6)

    def replace(model: Any, optimizer: Any) -> None:
        for p in model.parameters():
            p.data = p.data.clone() * 0.9
            p.grad = None

    loop.both(replace)
    loop.train(6, 7)
    loop.models[0], loop.optimizers[0] = pickle.loads(pickle.dumps((loop.models[0], loop.optimizers[0])))
    loop.train(7, 9)

    loop.both(extend)
    loop.train(9, 11)
    loop.both(lambda model, optimizer: (optimizer.clear_state(), optimizer.zero_grad()))
    loop.train(11, 12)
