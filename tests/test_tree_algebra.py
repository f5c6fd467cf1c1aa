"""Trees as vectors: closed forms, and optax.tree where it is installed."""

from __future__ import annotations

import math
from typing import Any

import optree
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from registry import make_grads, make_params

from functopt import tree

lawful = settings(max_examples=20, deadline=None, derandomize=True)
seeds = st.integers(0, 10_000)
numbers = st.floats(-10.0, 10.0)
SHAPES = ((2, 3), (), (4,))


def vectors(seed: int, count: int) -> list[Any]:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda shape: torch.randn(shape, generator=generator, dtype=torch.float64)
    return [{"a": [draw(SHAPES[0])], "b": (draw(SHAPES[1]), {"c": draw(SHAPES[2])})} for _ in range(count)]


CALLS: dict[str, Any] = {
    "add": lambda t, x, y, s: t.add(x, y, x),
    "sub": lambda t, x, y, s: t.sub(x, y),
    "mul": lambda t, x, y, s: t.mul(x, y),
    "div": lambda t, x, y, s: t.div(x, y),
    "scale": lambda t, x, y, s: t.scale(s, x),
    "add_scale": lambda t, x, y, s: t.add_scale(x, s, y),
    "where": lambda t, x, y, s: t.where(s > 0, x, y),
    "clip": lambda t, x, y, s: t.clip(x, -0.5, abs(s)),
    "clip below": lambda t, x, y, s: t.clip(x, min_value=s),
    "sum": lambda t, x, y, s: t.sum(x),
    "max": lambda t, x, y, s: t.max(x),
    "min": lambda t, x, y, s: t.min(x),
    "norm": lambda t, x, y, s: t.norm(x),
    "norm squared": lambda t, x, y, s: t.norm(x, squared=True),
    "1-norm": lambda t, x, y, s: t.norm(x, 1),
    "1-norm squared": lambda t, x, y, s: t.norm(x, 1, squared=True),
    "largest": lambda t, x, y, s: t.norm(x, math.inf),
    "full_like": lambda t, x, y, s: t.full_like(x, s),
    "ones_like": lambda t, x, y, s: t.ones_like(x),
    "zeros_like": lambda t, x, y, s: t.zeros_like(x),
    "size": lambda t, x, y, s: t.size(x),
    "allclose": lambda t, x, y, s: (t.allclose(x, x), t.allclose(x, y)),
}


@pytest.mark.parametrize("name", CALLS)
def test_agrees_with_optax(name: str):
    optax: Any = pytest.importorskip("optax")
    jax: Any = pytest.importorskip("jax")
    to_numpy = lambda values: optree.tree_map(lambda x: x.numpy(), values)

    @lawful
    @given(seeds, numbers)
    def check(seed: int, s: float) -> None:
        x, y = vectors(seed, 2)
        got = CALLS[name](tree, x, y, s)
        with jax.enable_x64(True):
            want = CALLS[name](optax.tree, to_numpy(x), to_numpy(y), s)
        ours, theirs = optree.tree_leaves(got), jax.tree.leaves(want)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(torch.as_tensor(a).double(), torch.tensor(b).double(), rtol=1e-12, atol=1e-12)

    check()


def test_closed_forms():
    x = {"a": torch.tensor([3.0, -4.0]), "b": torch.tensor(1.0)}
    assert [tree.norm(x, ord).item() for ord in (1, math.inf)] == [8.0, 4.0]
    assert tree.norm(x, squared=True) == 26.0
    assert (tree.sum(x), tree.max(x), tree.min(x)) == (0.0, 3.0, -4.0)
    assert tree.dot(x, tree.scale(2.0, x)) == 52.0


def test_prefixes_and_numbers_broadcast():
    x = {"a": {"c": torch.ones(2), "d": torch.ones(())}, "b": torch.ones(3)}
    want = {"a": {"c": torch.full((2,), 3.0), "d": torch.tensor(3.0)}, "b": torch.full((3,), 5.0)}
    for got in (
        tree.add(x, {"a": 2.0, "b": torch.tensor(4.0)}),
        tree.scale({"a": 3.0, "b": 5.0}, x),
        tree.where({"a": True, "b": False}, tree.full_like(x, 3.0), tree.full_like(x, torch.tensor(5.0))),
    ):
        assert tree.allclose(got, want, rtol=0, atol=0)


def test_packed_trees_have_the_same_sums_and_extremes():
    # what lies in the padding after a division by 0 does not count
    x, y = make_params(), make_grads(steps=1)[0]
    packed = tree.div(tree.pack(x), tree.pack(y))
    plain = tree.div(x, y)
    for f in (tree.sum, tree.max, tree.min, tree.norm, lambda t: tree.norm(t, 1), lambda t: tree.norm(t, math.inf)):
        torch.testing.assert_close(f(packed), f(plain), rtol=1e-12, atol=0)


def test_sums_and_norms_of_low_precision_are_exact_to_float32():
    x = torch.ones(1000, dtype=torch.bfloat16)
    assert tree.sum(x) == tree.norm(x, 1) == 1000.0
    assert tree.sum(x).dtype == tree.norm(x, 1).dtype == torch.float32


def test_casts():
    x = {"a": torch.ones(2), "b": torch.ones(())}
    low = tree.cast(x, torch.bfloat16)
    assert [leaf.dtype for leaf in tree.leaves(low)] == [torch.bfloat16] * 2
    assert tree.cast(x, None) is x
    assert [leaf.dtype for leaf in tree.leaves(tree.cast_like(low, x))] == [torch.float32] * 2
    assert tree.full_like(x, 2, torch.float64)["a"].dtype == torch.float64


def test_no_bound_and_no_entries():
    x = {"a": torch.ones(2), "none": torch.ones(0)}
    assert tree.clip(x) is x
    assert (tree.max(x), tree.min(x), tree.norm(x, math.inf)) == (1.0, 1.0, 1.0)
    assert (tree.max(torch.ones(0)), tree.min(torch.ones(0))) == (-math.inf, math.inf)
    for ord, message in [(math.inf, "the tree has no entries"), (3, "ord must be 1, 2 or infinity, got 3")]:
        with pytest.raises(ValueError, match=message):
            tree.norm(torch.ones(0), ord)
    with pytest.raises(ValueError, match="does not fit the first tree: 'c' is not expected there"):
        tree.add({"a": torch.ones(())}, {"a": 1.0, "c": 2.0})
