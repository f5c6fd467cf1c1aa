"""Noise in the updates, clipping by example, and differential privacy made of the two."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from registry import make_params
from said import words
from torch import Tensor, nn

import functopt as fo
from functopt import tree

F64 = torch.float64


def zeros(size: int = 20_000) -> dict[str, Tensor]:
    return {"a": torch.zeros(size, dtype=F64), "b": torch.zeros(size, dtype=F64)}


def noise_of(tx: fo.Transform, steps: int, grads: Any = None, **hypers: Any) -> list[Any]:
    """What is added to zero updates at each step."""
    params, seen = zeros(), []
    state = tx.init(params)
    for _ in range(steps):
        u, state = tx.transform(params if grads is None else grads, state, params, hypers)
        seen.append(u)
    return seen


def is_noise(x: Tensor, deviation: float) -> None:
    """Check mean and variance to five standard deviations."""
    n = x.numel()
    assert abs(x.mean()) < 5 * deviation / math.sqrt(n)
    assert abs(x.square().mean() / deviation**2 - 1) < 5 * math.sqrt(2 / n)


def unlike(x: Tensor, y: Tensor) -> None:
    assert abs(torch.corrcoef(torch.stack([x, y]))[0, 1]) < 5 / math.sqrt(x.numel())


# Noise


def test_the_variance_falls_as_said():
    seen = noise_of(fo.add_noise(0.3, 0.55, 1), 4)
    for t, noise in enumerate(seen, 1):
        for leaf in tree.leaves(noise):
            is_noise(leaf, math.sqrt(0.3 / t**0.55))


def test_noise_differs_between_steps_leaves_seeds_and_members():
    tx = fo.add_noise(1.0, 0.0, 1)
    one, two = noise_of(tx, 2)
    for other in (one["b"], two["a"], noise_of(tx, 1, seed=2)[0]["a"]):
        unlike(one["a"], other)
    params, seeds = zeros(100), torch.tensor([1.0, 2.0])
    run = lambda seed: tx.transform(params, tx.init(params), params, {"seed": seed})[0]
    together = torch.func.vmap(run)(seeds)
    for i, seed in enumerate((1, 2)):
        assert torch.equal(together["a"][i], run(seed)["a"])


def test_two_links_with_one_seed_add_unlike_noise():
    params = zeros()
    aggregate = fo.differentially_private_aggregate(1.0, 1.0, 1)
    examples = tree.map(lambda p: p.expand(1, -1), params)
    private = aggregate.transform(examples, aggregate.init(params), params)[0]
    unlike(private["a"], noise_of(fo.add_noise(1.0, 0.0, 1), 1)[0]["a"])


def test_noise_is_the_same_again_and_resumes():
    tx, params = fo.noisy_sgd(0.1, seed=3), make_params()
    start = params, tx.init(params)
    first, second = ([start], [start])
    for runs in (first, second):
        for _ in range(3):
            params, state = runs[-1]
            runs.append(tx.update(params, state, params))
    resumed = tx.update(first[2][0], first[2][1], first[2][0])
    for a, b, c in zip(*map(tree.leaves, (first[-1], second[-1], resumed)), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


def test_the_noise_of_a_seed_by_group():
    params = zeros(50)
    tx = fo.add_noise(1.0, 0.0, {"a": 1, "b": torch.tensor(2)})
    got = tx.transform(params, tx.init(params), params)[0]
    for name, seed in (("a", 1), ("b", 2)):
        assert torch.equal(got[name], fo.add_noise(1.0, 0.0, seed).transform(params, tx.init(params), params)[0][name])


def test_a_seed_is_a_whole_number():
    params = zeros(3)
    with pytest.raises(ValueError, match="a seed must be a whole number"):
        fo.noisy_sgd(0.1, seed=0.5).update(params, fo.noisy_sgd().init(params), params)
    with pytest.raises(KeyError, match="here it is called 'seed'"):
        fo.noisy_sgd().with_hypers(key=3)
    with pytest.raises(ValueError, match="eta must be in"):
        fo.add_noise(-0.1)


# By example

GRADS = torch.tensor([[0.0, 0.0, 0.0], [0.0, 3.0, 4.0], [4.0, 0.0, 3.0], [3.0, 4.0, 0.0]])  # norms 0, 5, 5, 5


@pytest.mark.parametrize(("limit", "total", "count"), [(math.inf, 7.0, 0), (1.25, 1.75, 3), (5.0, 7.0, 0)])
def test_no_example_counts_for_more_than_the_limit(limit: float, total: float, count: int):
    for got in (
        fo.per_example_global_norm_clip([GRADS], limit),
        fo.per_example_layer_norm_clip([GRADS], limit),
        fo.per_example_layer_norm_clip([GRADS], limit, uniform=False),
    ):
        assert got[0][0].tolist() == [total] * 3
        assert tree.leaves(got[1]) == [count]
    assert not fo.per_example_global_norm_clip(GRADS, 0.0)[0].any()


def test_layers_share_the_limit():
    grads = {"a": 10 * torch.ones(2, 3), "b": 10 * torch.ones(2, 9)}  # 12 entries of an example
    sums, counts = fo.per_example_layer_norm_clip(grads, 2.0)
    assert [leaf.norm().item() / 2 for leaf in (sums["a"], sums["b"])] == pytest.approx([math.sqrt(2)] * 2)
    assert counts == {"a": 2, "b": 2}
    sums, _ = fo.per_example_layer_norm_clip(grads, 2.0, uniform=False)
    assert [leaf.norm().item() / 2 for leaf in (sums["a"], sums["b"])] == pytest.approx([1.0, math.sqrt(3)])


def test_clipping_by_example_agrees_with_optax():
    optax: Any = pytest.importorskip("optax")
    generator = torch.Generator().manual_seed(0)
    grads = [torch.randn(6, *shape, generator=generator) for shape in ((3,), (2, 4), ())]
    for limit in (0.5, 2.0, 5.0):
        theirs = optax.per_example_global_norm_clip([g.numpy() for g in grads], limit)
        pairs = [(fo.per_example_global_norm_clip(grads, limit), theirs)]
        for uniform in (True, False):
            theirs = optax.per_example_layer_norm_clip([g.numpy() for g in grads], limit, uniform)
            pairs.append((fo.per_example_layer_norm_clip(grads, limit, uniform=uniform), theirs))
        for (sums, counts), (want, numbers) in pairs:
            for a, b in zip(sums, want, strict=True):
                torch.testing.assert_close(a, torch.tensor(b), rtol=1e-5, atol=1e-6)
            assert [int(n) for n in tree.leaves(counts)] == [int(n) for n in tree.leaves(numbers)]


@pytest.mark.parametrize("clip", [fo.per_example_global_norm_clip, fo.per_example_layer_norm_clip])
@pytest.mark.parametrize("shapes", [[(3, 2), (4, 2)], [(3, 2), ()], [(0, 2)]])
def test_errors_by_example(clip: Any, shapes: Any):
    with pytest.raises(ValueError, match="expected gradients with a leading axis of examples") as error:
        clip([torch.zeros(shape) for shape in shapes], 1.0)
    words(error, clip.__name__, str([*shapes[0]]))


# Privacy


def problem() -> tuple[Any, Any, Any]:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(6, 3, generator=generator, dtype=F64), torch.randn(6, generator=generator, dtype=F64)
    loss = lambda p, x, y: (x @ p["w"] + p["b"] - y) ** 2
    return {"w": torch.ones(3, dtype=F64), "b": torch.ones((), dtype=F64)}, loss, (x, y)


def test_gradients_of_examples_from_vmap():
    params, loss, data = problem()
    examples = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(params, *data)
    tx = fo.dpsgd(0.1, max_norm=1e9, noise_multiplier=0.0)
    got, _ = tx.update(examples, tx.init(params), params)
    mean = torch.func.grad(lambda p: torch.func.vmap(loss, in_dims=(None, 0, 0))(p, *data).mean())(params)
    want, _ = fo.sgd(0.1).update(mean, fo.sgd(0.1).init(params), params)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)


def test_one_example_moves_the_result_by_no_more_than_the_limit():
    params, loss, data = problem()
    examples = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(params, *data)
    tx = fo.differentially_private_aggregate(0.3, 0.0)
    result = lambda grads: tx.transform(grads, tx.init(params), params)[0]
    whole = tree.scale(6.0, result(examples))
    for i in range(6):
        others = tree.map(lambda g, i=i: torch.cat([g[:i], g[i + 1 :]]), examples)
        assert tree.norm(tree.sub(whole, tree.scale(5.0, result(others)))) <= 0.3 * (1 + 1e-12)


def test_the_noise_of_privacy():
    grads = tree.map(lambda p: p.expand(4, -1), zeros())
    tx = fo.differentially_private_aggregate(0.5, 3.0, 1)
    one, two = noise_of(tx, 2, grads)
    for leaf in (one["a"], one["b"], two["a"]):
        is_noise(leaf, 3.0 * 0.5 / 4)
    for other in (one["b"], two["a"], noise_of(tx, 1, grads, seed=2)[0]["a"]):
        unlike(one["a"], other)


@pytest.mark.parametrize("wrap", [lambda tx: tx, fo.lookahead, lambda tx: fo.chain(tx, fo.clip(1.0))])
def test_it_wants_examples_wherever_it_stands(wrap: Any):
    tx, params = wrap(fo.dpsgd(0.1)), make_params()
    state = tx.init(params)
    with pytest.raises(ValueError, match="expected the gradients of examples, which have a leading axis"):
        tx.update(params, state, params)
    stacked = tree.stack([params, params, params])
    assert tree.prefix_problem(tx.update(stacked, state, params)[0], params, exact=True) == ""
    with pytest.raises(ValueError, match="flatten: differentially_private_aggregate cannot run on packed leaves"):
        fo.flatten(tx)


def test_other_trees_are_refused():
    tx, params = fo.dpsgd(0.1), {"w": torch.zeros(2), "v": torch.zeros(3)}
    state = tx.init(params)
    for grads, message in [
        ({"w": torch.zeros(4, 2)}, r"before \[\[3\], \[2\]\], got \[\[4, 2\]\]"),
        ({"w": torch.zeros(4, 2), "x": torch.zeros(4, 3)}, "expected the gradients of examples"),
        ({"v": torch.zeros(4, 3), "x": torch.zeros(4, 2)}, "no counterpart"),
        ({"w": torch.zeros(4, 2), "v": torch.zeros(3, 3)}, "a leading axis of examples, the same for all"),
        ({"w": torch.zeros(4, 2), "v": torch.zeros(4, 2)}, "expected the gradients of examples"),
    ]:
        with pytest.raises(ValueError, match=message):
            tx.update(grads, state, params)


def test_a_stateful_optimizer_has_no_examples():
    model = nn.Linear(3, 2)
    optimizer = fo.StatefulOptimizer(model.parameters(), fo.dpsgd(0.1))
    model(torch.ones(4, 3)).sum().backward()
    with pytest.raises(ValueError, match="expected the gradients of examples"):
        optimizer.step()
