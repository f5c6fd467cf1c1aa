"""Links that clip, normalise, constrain and hold back, and functions beside them: what they are for."""

from __future__ import annotations

import math
from typing import Any

import optree
import pytest
import torch
from registry import make_grads, make_params, run
from registry.links import by_size, shrink
from torch import Tensor

import functopt as fo
from functopt import tree

F64 = torch.float64


def bits_equal(got: Any, want: Any) -> None:
    assert optree.tree_structure(got) == optree.tree_structure(want)
    assert all(torch.equal(a, b) for a, b in zip(tree.leaves(got), tree.leaves(want), strict=True))


def out(tx: fo.Transform, updates: Any, params: Any, **hypers: Any) -> Any:
    return tx.transform(updates, tx.init(params), params, hypers)[0]


def units(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


# Clipping by unit


@pytest.mark.parametrize("shape", [(), (5,), (4, 3), (3, 2, 2), (4, 3, 2, 2), (2, 2, 2, 2, 2)])
def test_no_unit_is_left_too_large(shape: tuple[int, ...]):
    p, g = units(shape), 0.3 * units(shape, 1)
    clipped = out(fo.adaptive_grad_clip(0.2, 0.5), g, p)
    rows = lambda x: x.reshape(len(x), -1) if x.ndim > 1 else x.reshape(1, -1)
    for u, before, weights in zip(rows(clipped), rows(g), rows(p), strict=True):
        limit = 0.2 * max(weights.norm().item(), 0.5)
        if before.norm() < limit:
            assert torch.equal(u, before)
        else:
            torch.testing.assert_close(u, before * (limit / before.norm()))


@pytest.mark.parametrize(
    ("shape", "back"), [((4, 3), (1, 0)), ((5, 3, 2, 2), (2, 3, 1, 0)), ((5, 3, 2, 2, 2), (2, 3, 4, 1, 0))]
)
def test_units_of_torch_are_those_of_optax_with_the_outputs_last(shape: tuple[int, ...], back: tuple[int, ...]):
    p, g = units(shape), units(shape, 1)
    ours = out(fo.adaptive_grad_clip(0.1), g, p)
    theirs = out(fo.adaptive_grad_clip(0.1, form="optax"), g.permute(back), p.permute(back))
    torch.testing.assert_close(ours.permute(back), theirs)


def test_norms_of_units():
    x = units((2, 3, 4))
    assert fo.unitwise_norm(x).shape == (2, 1, 1)
    assert fo.unitwise_norm(x, form="optax").shape == (1, 3, 4)
    assert fo.unitwise_norm(x[:1, :1], form="optax").shape == (1, 1, 1)
    torch.testing.assert_close(fo.unitwise_norm(x, (0, 2)).flatten(), x.transpose(0, 1).reshape(3, -1).norm(dim=1))
    assert fo.unitwise_norm(torch.ones(2, 9, dtype=torch.bfloat16)).dtype == torch.float32


def test_errors_of_units():
    with pytest.raises(ValueError, match="adaptive_grad_clip: form must be 'torch' or 'optax', got 'jax'"):
        fo.adaptive_grad_clip(form="jax")
    with pytest.raises(ValueError, match="unitwise_norm: form must be"):
        fo.unitwise_norm(torch.ones(2), form="jax")
    with pytest.raises(ValueError, match=r"optax has no units for shape \[2, 2, 2, 2, 2, 2\]; give axis"):
        fo.unitwise_norm(torch.ones((2,) * 6), form="optax")
    with pytest.raises(ValueError, match=r"clipping must be in \[0, inf\], got -1"):
        fo.adaptive_grad_clip(-1)


# Normalising


def test_centralize_leaves_vectors_alone():
    params = make_params()
    got = out(fo.centralize(), params, params)
    bits_equal((got["body"]["bias"], got["head"]["gain"]), (params["body"]["bias"], params["head"]["gain"]))
    for u, p in ((got["body"]["weight"], params["body"]["weight"]), (got["head"]["kernel"], params["head"]["kernel"])):
        torch.testing.assert_close(u.flatten(1).mean(1), torch.zeros(len(u), dtype=F64), rtol=0, atol=1e-15)
        torch.testing.assert_close(u.flatten(1).diff(), p.flatten(1).diff())


def test_the_norm_is_what_was_asked_for():
    params, grads = make_params(), make_grads(steps=1)[0]
    assert math.isclose(tree.norm(out(fo.normalize(), grads, params)), 1.0, rel_tol=1e-14)
    assert math.isclose(tree.norm(out(fo.normalize_by_update_norm(0.3, 0.0), grads, params)), 0.3, rel_tol=1e-14)
    zeros = tree.zeros_like(params)
    bits_equal(out(fo.normalize(), zeros, params), zeros)


def test_a_leaf_at_zero_moves_by_the_least_scale():
    tx = fo.scale_by_param_block_norm(0.01)
    assert out(tx, torch.tensor([2.0, 0.0]), torch.zeros(2)).tolist() == pytest.approx([0.02, 0.0])
    assert out(tx, torch.tensor([2.0, 0.0]), torch.tensor([3.0, 4.0])).tolist() == [10.0, 0.0]


# Holding back


def test_the_sum_comes_out_at_every_kth_step():
    tx, params = fo.apply_every(3), make_params()
    grads, state, seen = make_grads(steps=7), tx.init(params), []
    for g in grads:
        u, state = tx.transform(g, state, params)
        seen.append(u)
    for i, u in enumerate(seen):
        if i in (2, 5):
            want = tree.add(tree.add(grads[i - 2], grads[i - 1]), grads[i])
            assert tree.allclose(u, want, rtol=1e-14, atol=1e-15)
        else:
            bits_equal(u, tree.zeros_like(params))
    bits_equal(tree.get(state, "grad_acc"), grads[6])


def test_nothing_is_lost_when_the_period_changes():
    tx, params = fo.apply_every(4), torch.zeros((), dtype=F64)
    state, total = tx.init(params), 0.0
    for k in (4, 4, 3, 2, 2, 5, 5, 8):  # out at steps 3, 4 and 8
        u, state = tx.transform(torch.ones((), dtype=F64), state, params, {"k": torch.tensor(k)})
        total += u.item()
    assert total == 8.0
    with pytest.raises(ValueError, match=r"apply_every: k must be in \[1, inf\), got 0"):
        fo.apply_every(0)


# Constraints


def test_nan_is_replaced_and_said():
    tx, params = fo.zero_nans(), {"a": torch.zeros(3), "b": torch.zeros(2)}
    state = tx.init(params)
    assert tree.get(state, "found_nan") == {"a": False, "b": False}
    bad = {"a": torch.tensor([1.0, math.nan, -math.inf]), "b": torch.tensor([2.0, 3.0])}
    u, state = tx.transform(bad, state, params)
    assert u["a"].tolist() == [1.0, 0.0, -math.inf]
    bits_equal(u["b"], bad["b"])
    assert tree.get(state, "found_nan") == {"a": True, "b": False}
    assert all(flag.dtype == torch.bool for flag in tree.leaves(state))
    assert tree.get(tx.transform(params, state, params)[1], "found_nan") == {"a": False, "b": False}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, F64])
def test_parameters_stop_at_an_exact_zero(dtype: torch.dtype):
    tx = fo.chain(fo.scale_by_lr(0.3), fo.keep_params_nonnegative())
    params = units((200,)).abs().to(dtype)
    grads = units((200,), 1).to(dtype)
    free = fo.scale_by_lr(0.3).update(grads, (), params)[0]
    got, _ = tx.update(grads, tx.init(params), params)
    assert (got >= 0).all()
    assert torch.equal(got[free >= 0], free[free >= 0])
    assert (got[free < 0] == 0).all()
    assert (free < 0).any()


# Functions and schedules as links


def test_what_a_function_may_do_is_said_by_its_scope():
    params, grads = make_params(), make_grads(steps=1)[0]
    want = tree.map(shrink, grads, params)
    for scope in ("matrix", "element"):
        bits_equal(out(fo.stateless_with_tree_map(shrink, scope=scope), grads, params), want)
    assert fo.flatten(fo.stateless_with_tree_map(shrink, scope="element")).layout_invariant
    with pytest.raises(ValueError, match="flatten: stateless_with_tree_map cannot run on packed leaves"):
        fo.flatten(fo.stateless_with_tree_map(shrink))
    bits_equal(out(fo.stateless(by_size), grads, params), by_size(grads, params))
    assert not fo.stateless(by_size).layout_invariant
    assert repr(fo.stateless(by_size)) == "stateless(f=by_size, scope='any')"


@pytest.mark.parametrize("make", [fo.stateless, fo.stateless_with_tree_map])
def test_errors_of_functions(make: Any):
    for wrong in (3.0, fo.sgd(0.1)):
        with pytest.raises(TypeError, match=rf"{make.__name__}: expected a function of \(updates, params\), got a"):
            make(wrong)
    with pytest.raises(ValueError, match=f"{make.__name__}: scope must be one of"):
        make(by_size, scope="leaves")


def test_a_schedule_scales_from_step_0():
    tx, params = fo.scale_by_schedule(fo.linear_schedule(1.0, 0.0, 4)), torch.zeros(2)
    state, seen = tx.init(params), []
    for _ in range(6):
        u, state = tx.transform(torch.ones(2), state, params)
        seen.append(u[0].item())
    assert seen == [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    for wrong, word in ((0.1, "a float"), (lambda step: 0.1, "a function")):
        with pytest.raises(TypeError, match=f"scale_by_schedule: expected a schedule, got {word}"):
            fo.scale_by_schedule(wrong)


# Dtypes of accumulators


@pytest.mark.parametrize("make", [fo.trace, fo.ema])
def test_an_average_is_kept_in_the_dtype_asked_for(make: Any):
    params = torch.zeros(1000, dtype=torch.bfloat16)
    grads = [units((1000,), i).to(torch.bfloat16) for i in range(30)]
    exact = run(make(0.99), params.double(), [g.double() for g in grads])[1]
    errors = []
    for dtype in (None, torch.float32):
        _, state = run(make(0.99, accumulator_dtype=dtype), params, grads)
        total = tree.get(state, "total")
        assert total.dtype == (dtype or torch.bfloat16)
        errors.append((total.double() - tree.get(exact, "total")).abs().max())
    assert errors[1] < 1e-3 * errors[0]


# A chain with names


def test_a_named_chain_is_a_chain():
    parts = [("clip", fo.clip_by_global_norm(0.5)), ("adam", fo.scale_by_adam()), ("lr", fo.scale_by_lr(0.1))]
    named, plain = fo.named_chain(*parts), fo.chain(*(tx for _, tx in parts))
    params, state = run(named, make_params(), make_grads())
    want, want_state = run(plain, make_params(), make_grads())
    bits_equal(params, want)
    assert {*state} == {"clip", "adam", "lr"}
    bits_equal(state["adam"], want_state[1])
    assert named.hypers == plain.hypers
    assert named.with_hypers(lr=0.2) == fo.named_chain(*parts[:2], ("lr", fo.scale_by_lr(0.2)))
    bits_equal(run(fo.named_chain(), make_params(), make_grads())[0], run(fo.chain(), make_params(), make_grads())[0])


def test_a_named_chain_counts_steps_once_for_a_schedule():
    schedule = fo.linear_schedule(0.1, 0.0, 5)
    named, plain = fo.named_chain(("sgd", fo.sgd(schedule))), fo.sgd(schedule)
    bits_equal(run(named, make_params(), make_grads())[0], run(plain, make_params(), make_grads())[0])


def test_errors_of_a_named_chain():
    a, b = fo.clip(1.0), fo.sgd(0.1)
    for wrong in (a, ("a", "b"), ("a", a, b), ["a", a]):
        with pytest.raises(TypeError, match=r"argument 2 is .*, expected a pair of a name and a Transform"):
            fo.named_chain(("first", b), wrong)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"needs a name of its own, but these occur twice: \['a'\]"):
        fo.named_chain(("a", a), ("a", b))
    with pytest.raises(ValueError, match="named_chain: 'slow' writes the parameters itself"):
        fo.named_chain(("slow", fo.lookahead(b)), ("clip", a))
    with pytest.raises(ValueError, match=r"named_chain: .* have different defaults for 'max_delta'"):
        fo.named_chain(("a", a), ("b", fo.clip(2.0)))
    tx, params = fo.named_chain(("a", a), ("b", b)), torch.zeros(2)
    for state, got in (((), "got tuple"), ({"a": ()}, r"got \['a'\]")):
        with pytest.raises(ValueError, match=rf"expected a dict of \['a', 'b'\], {got}"):
            tx.update(params, state, params)


# Copies that follow


def test_target_networks():
    new, old = make_params(), make_params(1)
    soft = fo.incremental_update(new, old, {"body": 0.25, "head": torch.tensor(1.0, dtype=F64)})
    want = tree.add(tree.scale(0.25, new["body"]), tree.scale(0.75, old["body"]))
    assert tree.allclose(soft["body"], want, rtol=1e-14, atol=1e-15)
    assert tree.allclose(soft["head"], new["head"], rtol=1e-14, atol=1e-15)
    for steps, period, due in ((6, 3, True), (7, 3, False), (0, 3, True)):
        for wrap in (int, torch.tensor):
            bits_equal(fo.periodic_update(new, old, wrap(steps), period), new if due else old)
    low = tree.cast(old, torch.bfloat16)
    for got in (fo.incremental_update(new, low, 0.5), fo.periodic_update(new, low, 3, 3)):
        assert {leaf.dtype for leaf in tree.leaves(got)} == {torch.bfloat16}
    mapped = torch.func.vmap(lambda s: fo.periodic_update(new, old, s, 3))(torch.tensor([3, 4]))
    bits_equal(mapped, tree.stack([new, old]))
