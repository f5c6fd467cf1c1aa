"""The counter-based generator: published answers, the same numbers however it runs, and numbers that look random."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from functopt import random

F64 = torch.float64
SIZE = 20_000

# From Random123's kat_vectors: counter, key, result.
ANSWERS = [
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "want"), ANSWERS)
def test_published_answers(counter: Any, key: Any, want: Any):
    a, b, c, d = map(torch.tensor, counter)
    words = random.philox((a, b, c, d), tuple(key))
    assert [int(word) for word in words] == want


def test_what_goes_where():
    block, stream, step, no_salt = map(torch.tensor, ([0, 1], 7, 5, 0x811C9DC5))
    counter = block, stream, step, no_salt
    want = torch.stack(random.philox(counter, (3, 2)), -1).flatten()
    assert random.bits(torch.zeros(7), (2 << 32) + 3, 5, 7).tolist() == want[:7].tolist()


def drawn(seed: Any, step: Any) -> list[Tensor]:
    like = torch.zeros(3, 5)
    return [random.bits(like, seed, step, 2), random.normal(like, seed, step, 2), random.uniform(like.double(), seed)]


def test_the_same_eager_mapped_and_traced():
    want = [torch.stack(pair) for pair in zip(drawn(1, 4), drawn(2, 4), strict=True)]
    mapped = torch.func.vmap(drawn, in_dims=(0, None))
    traced = torch.compile(mapped, fullgraph=True, backend="aot_eager")
    for function in (mapped, traced):
        for a, b in zip(function(torch.tensor([1.0, 2.0]), torch.tensor(4)), want, strict=True):
            assert a.dtype == b.dtype
            assert torch.equal(a, b)


def test_the_same_in_generated_code():
    # its multiplications must wrap as those of torch do
    draw = lambda seed, step: random.bits(torch.zeros(9), seed, step)
    given = torch.tensor(7.0), torch.tensor(3)
    assert torch.equal(torch.compile(draw, fullgraph=True)(*given), draw(*given))


def test_a_number_depends_on_its_position_and_not_on_the_shape():
    for draw in (random.bits, random.uniform, random.normal, random.rademacher):
        for dtype in (torch.float32, F64):
            long = draw(torch.zeros(50, dtype=dtype), 1)
            assert torch.equal(draw(torch.zeros(3, 5, dtype=dtype), 1), long[:15].view(3, 5))
            assert torch.equal(draw(torch.zeros((), dtype=dtype), 1), long[0])
            assert draw(torch.zeros(0, 3, dtype=dtype), 1).shape == (0, 3)


def test_the_global_generator_is_left_alone():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = random.normal(torch.zeros(5), 0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert torch.equal(random.normal(torch.zeros(5), 0), first)


def test_on_a_gpu_without_a_synchronisation():
    with FakeTensorMode():
        like, seed, step = (torch.empty(s, device="cuda") for s in ((3, 5), (), ()))
        for number in (seed, 3):
            assert random.normal(like, number, step.to(torch.int64)).device.type == "cuda"


@pytest.mark.parametrize(
    ("dtype", "digits"), [(torch.bfloat16, 8), (torch.float16, 11), (torch.float32, 24), (F64, 53)]
)
def test_uniform_numbers_fill_their_dtype_below_1(dtype: torch.dtype, digits: int, monkeypatch: pytest.MonkeyPatch):
    x = random.uniform(torch.zeros(SIZE, dtype=dtype), 3)
    assert x.dtype == dtype
    steps = x.double() * 2.0**digits
    assert torch.equal(steps, steps.round())
    assert (steps % 2 == 1).any()
    ones = [torch.full((2,), 0xFFFFFFFF)] * 4
    monkeypatch.setattr(random, "_words", lambda *_: ones)
    assert (random.uniform(torch.zeros(4, dtype=dtype), 3) == 1 - 2.0**-digits).all()


@pytest.mark.parametrize("word", [0, 0xFFFFFFFF])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, F64])
def test_normal_numbers_are_finite_at_the_ends(dtype: torch.dtype, word: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(random, "_words", lambda *_: [torch.full((2,), word)] * 4)
    x = random.normal(torch.zeros(4, dtype=dtype), 0)
    assert x.isfinite().all()
    assert x.abs().max() < 10


# Do they look random?


def within(x: Tensor, mean: float, variance: float) -> None:
    """Check the mean of independent numbers of this variance, to five standard deviations."""
    assert abs(x.double().mean().item() - mean) < 5 * math.sqrt(variance / x.numel())


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_moments_and_distribution(dtype: torch.dtype):
    like = torch.zeros(SIZE, dtype=dtype)
    for seed in range(3):
        u, n, r = random.uniform(like, seed), random.normal(like, seed), random.rademacher(like, seed)
        for x, mean, variance in [(u, 0.5, 1 / 12), (u**2, 1 / 3, 4 / 45), (r, 0.0, 1.0)]:
            within(x, mean, variance)
        for power, mean, variance in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)]:
            within(n**power, mean, variance)
        assert {*r.tolist()} == {-1.0, 1.0}
        for x in (u, torch.special.ndtr(n)):  # Kolmogorov and Smirnov: 1e-6 is exceeded with probability 6e-6
            steps = torch.arange(1, SIZE + 1) / SIZE
            assert (x.double().sort().values - steps).abs().max() < 2.5 / math.sqrt(SIZE)


def test_every_bit_is_set_half_of_the_time():
    x = random.bits(torch.zeros(SIZE), 1)
    assert x.min() >= 0
    assert x.max() < 2**32
    for bit in range(32):
        within((x >> bit) & 1, 0.5, 0.25)


def test_independent_of_each_other():
    like = torch.zeros(SIZE, dtype=F64)
    base = random.normal(like, 1, 1, 1, salt="a")
    others = {
        "neighbour": base.roll(1),
        "pair": base.view(-1, 2).flip(1).flatten(),
        "seed": random.normal(like, 2, 1, 1, salt="a"),
        "far seed": random.normal(like, 1 + 2**32, 1, 1, salt="a"),
        "negative seed": random.normal(like, -1, 1, 1, salt="a"),
        "step": random.normal(like, 1, 2, 1, salt="a"),
        "stream": random.normal(like, 1, 1, 2, salt="a"),
        "salt": random.normal(like, 1, 1, 1, salt="b"),
    }
    for name, other in others.items():
        for f in (lambda x: x, torch.square, torch.abs):
            r = torch.corrcoef(torch.stack([f(base), f(other)]))[0, 1]
            assert abs(r) < 5 / math.sqrt(SIZE) * (2 if name == "pair" else 1), name


# Trees and seeds


def test_every_leaf_has_its_own_stream():
    b, a = torch.zeros(4), torch.zeros(2, 2)
    got = random.normal_like({"b": b, "a": [torch.zeros(0), a]}, 5, 1)  # an empty leaf does not count
    assert torch.equal(got["b"], random.normal(b, 5, 1, 0))
    assert torch.equal(got["a"][1], random.normal(a, 5, 1, 1))
    assert not torch.equal(got["b"], got["a"][1].flatten())


@pytest.mark.parametrize(
    ("of_tree", "of_leaf"),
    [
        (random.normal_like, random.normal),
        (random.uniform_like, random.uniform),
        (random.rademacher_like, random.rademacher),
    ],
)
def test_a_seed_for_each_group(of_tree: Any, of_leaf: Any):
    x = torch.zeros(3)
    got = of_tree({"a": {"c": x, "d": x}, "b": x}, {"a": 1, "b": torch.tensor(2.0)}, 4, salt="s")
    assert torch.equal(got["a"]["d"], of_leaf(x, 1, 4, 1, salt="s"))
    assert torch.equal(got["b"], of_leaf(x, 2, 4, 2, salt="s"))


def test_seeds_of_any_kind():
    x = torch.zeros(5)
    want = random.normal(x, 3)
    for seed in (3.0, torch.tensor(3), torch.tensor(3.0, dtype=F64)):
        assert torch.equal(random.normal(x, seed), want)
    with pytest.raises(ValueError, match=r"random: a seed must be a whole number, got 0\.5"):
        random.normal(x, 0.5)
