"""Masks and partitions: states with holes, hypers by label, and where these are used."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from registry import make_grads, make_params, run
from registry.gating import kinds
from registry.problem import matrices
from torch import nn

import functopt as fo
from functopt import StatefulOptimizer, tree

LABELS = {"body": "slow", "head": "fast"}


def adams(**hypers: Any) -> fo.Transform:
    return fo.partition({"slow": fo.adamw(0.01), "fast": fo.adamw(0.1)}, LABELS).with_hypers(**hypers)


def close(got: Any, want: Any) -> None:
    for (path, a), b in zip(tree.leaves_with_paths(got), tree.leaves(want), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14, msg=lambda m, at=path: f"{at}: {m}")


# Holes


def test_leaves_outside_have_no_state():
    state = fo.masked(fo.scale_by_adam(), matrices).init(make_params())
    total = tree.get(state, "mu.total")
    assert total["body"]["bias"] == ()
    assert total["head"]["gain"] == ()
    assert total["body"]["weight"].shape == (4, 3)
    parts = fo.partition({"wide": fo.adam(), "narrow": fo.sgd(0.1, 0.9)}, kinds).init(make_params())
    total = tree.get(parts, "trace.total")
    assert total["body"]["weight"] == total["head"]["kernel"] == ()
    assert total["body"]["bias"].shape == (3,)
    sizes = sum(leaf.numel() for leaf in tree.leaves(parts) if leaf.ndim)
    assert sizes == 2 * (12 + 12) + 3  # and one gain, which is a number


def test_masks_are_trees_prefixes_and_functions():
    params, grads = make_params(), make_grads(steps=2)
    by_function, _ = run(fo.masked(fo.sgd(0.1), matrices), params, grads)
    tree_of_bools = {"body": {"weight": True, "bias": False}, "head": {"gain": False, "kernel": True}}
    close(run(fo.masked(fo.sgd(0.1), tree_of_bools), params, grads)[0], by_function)
    prefix, _ = run(fo.masked(fo.sgd(0.1), {"body": True, "head": False}), params, grads)
    passed = tree.map(lambda p, *g: sum(g, start=p), params["head"], *(g["head"] for g in grads))
    close(prefix["head"], passed)  # as in optax, what passes is added


def test_hypers_of_what_is_masked_may_name_every_leaf():
    params, grads = make_params(), make_grads(steps=3)
    by_leaf = {"body": {"weight": 0.1, "bias": 0.2}, "head": {"gain": 0.3, "kernel": 0.4}}
    decays = {"body": 0.5, "head": {"gain": 0.6, "kernel": 0.7}}
    mask = {"body": True, "head": {"gain": False, "kernel": True}}
    everywhere, _ = run(fo.adam(by_leaf, beta1=decays), params, grads)
    got, state = run(
        fo.selective_transform(
            fo.adam(by_leaf, beta1=decays), freeze_mask={"body": False, "head": {"gain": True, "kernel": False}}
        ),
        params,
        grads,
    )
    expected = tree.map(
        lambda on, p, q: q if on else p,
        {"body": {"weight": True, "bias": True}, "head": mask["head"]},
        params,
        everywhere,
    )
    close(got, expected)
    assert tree.get(state, "mu.weight")["head"]["gain"] == ()


def test_norms_are_those_of_the_leaves_inside():
    grads = make_grads(steps=1)[0]
    tx = fo.masked(fo.clip_by_global_norm(1.0), {"body": True, "head": False})
    out, _ = tx.transform(grads, tx.init(make_params()), make_params())
    assert tree.norm(out["body"]).item() == pytest.approx(1.0)
    close(out["head"], grads["head"])


def test_extras_like_the_parameters_have_holes_too():
    params, grads = make_params(), make_grads(steps=1)[0]
    seen: dict[str, Any] = {}

    @fo.link
    def spy() -> Any:
        def transform(updates, state, params, grad, value, value_fn):
            seen.update(grad=grad, value=value, loss=value_fn(tree.map(lambda p: p + 1, params)))
            return updates, state

        return transform

    tx = fo.masked(spy(), {"body": True, "head": False})
    loss = lambda p: torch.stack([leaf.sum() for leaf in tree.leaves(p)]).sum()
    tx.update(grads, tx.init(params), params, grad=grads, value=params["head"]["gain"], value_fn=loss)
    assert seen["grad"]["head"] == {"gain": (), "kernel": ()}
    assert torch.equal(seen["grad"]["body"]["bias"], grads["body"]["bias"])
    assert seen["value"] is params["head"]["gain"]
    torch.testing.assert_close(seen["loss"], loss(params) + 15)  # the 15 entries of the body


def test_masks_say_what_is_wrong():
    params = make_params()
    with pytest.raises(TypeError, match="masked: the mask at 'body' is 1; expected True or False"):
        fo.masked(fo.sgd(), {"body": 1, "head": True}).init(params)
    with pytest.raises(ValueError, match="freeze: the mask is no prefix of params: 'head' has no counterpart"):
        fo.freeze({"body": True}).update(params, (), params)
    with pytest.raises(TypeError, match="selective_transform: inner is a int, expected a Transform"):
        fo.selective_transform(3, freeze_mask=True)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="masked: the parameters are packed"):
        fo.masked(fo.sgd(), True).init(fo.pack(params))
    with pytest.raises(ValueError, match="flatten: masked cannot run on packed leaves"):
        fo.flatten(fo.masked(fo.sgd(), True))
    with pytest.raises(ValueError, match="masked: the state belongs to another optimizer: expected MaskedState"):
        fo.masked(fo.sgd(), True).update(params, (), params)


def test_frozen_leaves_stay_even_with_nan():
    params = make_params()
    nan = tree.map(lambda p: torch.full_like(p, torch.nan), params)
    for tx in (fo.freeze(), fo.selective_transform(fo.adam(), freeze_mask=True)):
        new, _ = tx.update(nan, tx.init(params), params)
        assert all(torch.equal(a, b) for a, b in zip(tree.leaves(new), tree.leaves(params), strict=True))


# Labels


def test_labels_say_what_is_wrong():
    params = make_params()
    with pytest.raises(
        ValueError, match=r"no optimizer for label 'arm', which 'body' has; have \['leg'\]. Add it, or map"
    ):
        fo.partition({"leg": fo.sgd()}, {"body": "arm", "head": "leg"}).init(params)
    with pytest.raises(TypeError, match="partition: the label at 'head' is 2; expected a string"):
        fo.partition({"a": fo.sgd()}, {"body": "a", "head": 2}).init(params)
    with pytest.raises(ValueError, match="partition: the label is no prefix of params: 'head' has no counterpart"):
        fo.partition({"a": fo.sgd()}, {"body": "a"}).init(params)
    with pytest.raises(TypeError, match="partition: the label 1 is a int, expected a string"):
        fo.partition({1: fo.sgd()}, "a")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"partition: the label 'a.b' has a dot in it"):
        fo.partition({"a.b": fo.sgd()}, "a.b")
    with pytest.raises(TypeError, match="partition: 'a': inner is a function, expected a Transform; call it"):
        fo.partition({"a": fo.sgd}, "a")  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="partition: transforms is a list, expected a dict by label"):
        fo.partition([fo.sgd()], "a")  # pyright: ignore[reportArgumentType]
    tx = fo.partition({"a": fo.sgd(), "b": fo.lookahead(fo.sgd())}, "a")
    assert tx.writes
    with pytest.raises(ValueError, match="chain: partition writes the parameters itself"):
        fo.chain(tx, fo.scale(1.0))


# Hypers


def test_hypers_are_nested():
    tx = adams()
    assert tx.hypers == {"slow": dict(fo.adamw(0.01).hypers), "fast": dict(fo.adamw(0.1).hypers)}
    assert tx.hypers["slow"]["lr"] == tx.hypers["slow.lr"] == 0.01
    assert [*tx.hypers] == ["slow", "fast"]
    assert len(tx.hypers) == 2
    assert "fast.lr" in tx.hypers
    assert "lr" not in tx.hypers
    assert repr(tx.hypers).startswith("{'slow': {")
    both = fo.partition({"a": adams(), "b": fo.sgd(0.3)}, "a")
    assert both.hypers["a"]["slow"]["lr"] == 0.01
    assert both.with_hypers(a={"slow": {"lr": 1.0}}).hypers["a.slow.lr"] == 1.0


def test_hypers_are_given_by_label_or_by_name():
    params, grads = make_params(), make_grads(steps=3)
    want, _ = run(fo.partition({"slow": fo.adamw(0.3, 0.5), "fast": fo.adamw(0.1)}, LABELS), params, grads)
    for given in ({"slow": {"lr": 0.3, "beta1": 0.5}}, {"slow.lr": 0.3, "slow": {"beta1": 0.5}}):
        close(run(adams(), params, grads, given)[0], want)
        close(run(adams(**given), params, grads)[0], want)
    for wrap in (
        fo.multi_steps,
        fo.scheduled,
        fo.lookahead,
        fo.apply_if_finite,
        lambda tx: fo.chain(fo.scale(1.0), tx),
    ):
        outer = wrap(adams())
        assert outer.hypers["slow"]["lr"] == 0.01
        again = outer.with_hypers(slow={"lr": 0.3, "beta1": 0.5})
        close(run(again, params, grads)[0], run(outer, params, grads, {"slow": {"lr": 0.3, "beta1": 0.5}})[0])
    renamed = fo.rename(adams(), **{"slow.lr": "lr"})
    assert renamed.hypers["lr"] == 0.01
    close(run(renamed.with_hypers(lr=0.3), params, grads)[0], run(adams(), params, grads, {"slow.lr": 0.3})[0])


def test_a_wrong_hyper_is_named_with_its_label():
    with pytest.raises(KeyError, match=r"partition has no hyper 'slow.lrr'; it has .* Did you mean 'slow.lr'"):
        adams(slow={"lrr": 1.0})
    with pytest.raises(KeyError, match=r"partition has no hyper 'slow.learning_rate'; here it is called 'slow.lr'"):
        adams(slow={"learning_rate": 1.0})
    with pytest.raises(KeyError, match="partition has no hyper 'lr'"):
        adams(lr=1.0)
    params = make_params()
    with pytest.raises(ValueError, match=r"partition: fast.lr must be in \[0, inf\), got -1"):
        adams().update(params, adams().init(params), params, {"fast": {"lr": -1.0}})


def test_schedules_by_label():
    params, grads = make_params(), make_grads(steps=3)
    falling = fo.linear_schedule(0.1, 0.0, 5)
    got, state = run(adams(slow={"lr": falling}), params, grads)
    assert int(state.count) == 3
    close(got["body"], run(fo.adamw(falling), params["body"], [g["body"] for g in grads])[0])
    close(got["head"], run(fo.adamw(0.1), params["head"], [g["head"] for g in grads])[0])


def test_hypers_by_label_are_mapped():
    tx, params, grads = adams(), make_params(), make_grads(steps=2)
    rates = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    members, states = tree.replicate(params, 3), tree.replicate(tx.init(params), 3)
    step = lambda g, s, p, lr: tx.update(g, s, p, {"slow": {"lr": lr}})
    for g in grads:
        members, states = torch.func.vmap(step, in_dims=(None, 0, 0, 0))(g, states, members, rates)
    for i, rate in enumerate(rates):
        close(tree.member(members, i), run(tx, params, grads, {"slow.lr": rate})[0])


@pytest.mark.parametrize("nested", [True, False])
def test_sweeps_by_label(nested: bool):
    x = torch.randn(16, 2, generator=torch.Generator().manual_seed(0))
    params = {"body": torch.ones(2), "head": torch.ones(2)}
    loss = lambda p, x: ((x @ (p["body"] - p["head"])) ** 2 + p["head"].square().sum()).mean()
    space = {"slow": {"lr": fo.grid([0.1, 0.2])}} if nested else {"slow.lr": fo.grid([0.1, 0.2])}
    result = fo.sweep(loss, params, adams(), space, [x] * 3, compile=False, progress=False)
    assert {name: column.tolist() for name, column in result.hypers.items()} == {"slow.lr": [0.1, 0.2]}
    tx = adams(slow={"lr": 0.2})
    want, _ = run(tx, params, [])
    state = tx.init(want)
    for _ in range(3):
        want, state = tx.update(torch.func.grad(loss)(want, x), state, want)
    torch.testing.assert_close(tree.member(result.all_params, 1), want, rtol=1e-5, atol=1e-6)  # float32
    with pytest.raises(KeyError, match=r"the optimizer has no hyper 'slow.rl'.* Did you mean 'slow.lr'"):
        fo.sweep(loss, params, adams(), {"slow": {"rl": [0.1]}}, [x], compile=False, progress=False)


# StatefulOptimizer


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()


def by_ndim(params: Any) -> Any:
    return {name: "weights" if p.ndim > 1 else "biases" for name, p in params.items()}


def two_kinds() -> fo.Transform:
    return fo.partition({"weights": fo.adamw(0.01), "biases": fo.sgd(0.1, 0.9)}, by_ndim)


def train(net: nn.Module, optimizer: Any, steps: int) -> None:
    x = torch.linspace(-1, 1, 15, dtype=torch.float64).view(5, 3)
    for _ in range(steps):
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("compile", [False, {"backend": "eager"}], ids=["eager", "compiled"])
def test_a_partition_trains_a_module(compile: Any):
    ours, theirs = model(), model()
    optimizer = StatefulOptimizer(ours.named_parameters(), two_kinds(), compile=compile)
    named = dict(theirs.named_parameters())
    others = [
        torch.optim.AdamW([p for p in named.values() if p.ndim > 1], 0.01),
        torch.optim.SGD([p for p in named.values() if p.ndim == 1], 0.1, 0.9),
    ]
    train(ours, optimizer, 4)
    for _ in range(4):
        x = torch.linspace(-1, 1, 15, dtype=torch.float64).view(5, 3)
        theirs.zero_grad()
        theirs(x).square().mean().backward()
        for other in others:
            other.step()
    close(dict(ours.state_dict()), dict(theirs.state_dict()))
    assert optimizer.param_groups[0]["weights.lr"] == 0.01
    names = {name for own in optimizer.state_dict()["state"].values() for name in own}
    adam = {f"weights.{moment}.{what}" for moment in ("mu", "nu") for what in ("total", "weight")}
    assert names == {*adam, "biases.trace.total", "biases.trace.weight"}


def test_param_groups_and_checkpoints_by_label():
    net = model()
    optimizer = StatefulOptimizer(net.named_parameters(), two_kinds(), weights={"lr": 0.02})
    optimizer.set_hypers(**{"biases.lr": 0.2})
    assert (optimizer.hypers[0]["weights.lr"], optimizer.hypers[0]["biases.lr"]) == (0.02, 0.2)
    train(net, optimizer, 2)
    file = io.BytesIO()
    torch.save((net.state_dict(), optimizer.state_dict()), file)
    train(net, optimizer, 2)
    file.seek(0)
    again = model()
    second = StatefulOptimizer(again.named_parameters(), two_kinds())
    weights, saved = torch.load(file, weights_only=True)
    again.load_state_dict(weights)
    second.load_state_dict(saved)
    train(again, second, 2)
    for a, b in zip(net.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_weight_decay_is_spared_by_label():
    net = model()
    tx = fo.partition({"all": fo.sgd(0.1, weight_decay=0.5, decoupled=True)}, "all")
    optimizer = StatefulOptimizer(net.named_parameters(), tx)
    optimizer.mark([net.get_parameter("0.weight")], do_wd=False)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in net.named_parameters():
        torch.testing.assert_close(p.detach(), before[name] * (1.0 if name == "0.weight" else 0.95), rtol=1e-14, atol=0)


def test_labels_may_be_the_parameters_names():
    made = lambda: {name: nn.Parameter(torch.ones(2, dtype=torch.float64)) for name in ("w", "b")}
    parts = {"w": fo.adam(0.1), "b": fo.sgd(0.1, 0.9)}
    ours, alone = made(), made()
    optimizers = [StatefulOptimizer(ours.items(), fo.partition(parts, {"w": "w", "b": "b"}))]
    optimizers += [StatefulOptimizer([(name, p)], parts[name]) for name, p in alone.items()]
    for step in range(3):
        for name, p in (*ours.items(), *alone.items()):
            p.grad = None if (step, name) == (1, "b") else torch.full((2,), 1.0 + step, dtype=torch.float64)
        for optimizer in optimizers:
            optimizer.step()
    for name in parts:
        assert torch.equal(ours[name], alone[name])
        own = {entry.removeprefix(f"{name}.") for entry in optimizers[0].state[ours[name]]}
        assert own == {*optimizers["wb".index(name) + 1].state[alone[name]]}
