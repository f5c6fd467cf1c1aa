"""Tapes: what is played back is what the function would have computed, and what cannot be is not."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

import functopt as fo
from functopt import eager, pieces
from functopt.folding import FOLDED
from functopt.recording import record, record_by_rows
from functopt.sweep.memory import _Counting
from functopt.tape import Program, Tape
from functopt.tree import arithmetic

Step = Callable[..., Any]


def draw(seed: int, size: int, dtypes: list[torch.dtype]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(size, generator=generator, dtype=torch.float64).to(dtype) + 0.5 for dtype in dtypes]


def taped(
    f: Step, slots: int = 3, dtype: torch.dtype = torch.float32, scalars: int = 0, rounding: float | None = None
) -> Tape | None:
    """Record a function on one slice, and check its tape on two others of other sizes."""
    zero_d = [torch.tensor(0.5 + i) for i in range(scalars)]
    inputs = [*draw(0, 8, [dtype] * slots), *zero_d]
    result, tape = record(lambda: ("result", f(*inputs)), inputs)
    assert result == "result"
    if tape is None:
        return None
    for size in (5, 8, 13):
        inputs = [*draw(size, size, [dtype] * slots), *[t.clone() for t in zero_d]]
        want = [t.clone() for t in f(*[t.clone() for t in inputs])]
        memory = tape.start(inputs)
        tape.play(memory, inputs)
        got = list(inputs)
        for i, new in tape.common:
            got[i] = memory[new]
        # a product that is added at once is not rounded in between
        off = (4 * torch.finfo(dtype).eps if rounding is None else rounding) if folded(tape) else 0.0
        for x, y in zip(got, want, strict=True):
            torch.testing.assert_close(x, y, rtol=off, atol=4 * off)
    return tape


def folded(tape: Tape) -> int:
    return sum(op.call in FOLDED.values() for op in tape.ops)


def test_intermediate_results_take_turns_and_new_values_go_where_the_old_ones_are():
    def f(p, g, m):
        new_m = torch.lerp(m, g, 0.1)
        return p - 0.1 * (new_m.square() + 1.0).sqrt() / (new_m + 2.0), g, new_m

    tape = taped(f)
    assert tape is not None
    assert len(tape.buffers) == 2
    assert not tape.copies
    assert {op.to for op in tape.ops} == {0, 2, *tape.buffers}


def test_an_old_value_is_kept_as_long_as_it_is_read():
    tape = taped(lambda p, g, m: (p + (m + g) * m, g, m + g))
    assert tape is not None
    assert len(tape.copies) == 1  # the new m is used, but the old one too


def test_values_that_move():
    assert taped(lambda p, g, m: (p - m, g, g)) is not None  # a memory of the last gradient
    assert taped(lambda p, a, b: (p * 2, p, a)) is not None  # a history: each goes one place on
    assert taped(lambda p, a, b: (p, b, a)) is not None  # two change places
    assert taped(lambda p, a, b: (a, a, a + b)) is not None
    assert taped(lambda p, a, b: (p, new := a * b, new)) is not None


def test_what_is_computed_twice_is_computed_once():
    tape = taped(lambda p, g, m: ((p - 0.5 * g) * 2, g, (p - 0.5 * g) + m))
    assert tape is not None
    assert len(tape.ops) == 3
    tape = taped(lambda p, g, m: (p * 2, g, p * 2.0 + p * 3))
    assert tape is not None
    # 2 and 2.0 are not the same number to torch: dtypes depend on it
    assert len(tape.ops) + folded(tape) == 4


def test_a_product_with_a_number_is_added_in_the_same_pass():
    half = torch.tensor(0.5)
    for f in (
        lambda p, g, m: (p + 0.5 * g, g, m),
        lambda p, g, m: (g * 0.5 + p, g, m),
        lambda p, g, m: (p - 0.5 * g, g, m),
        lambda p, g, m: (p + half * g, g, m),
        lambda p, g, m: (p - g * half, g, m),
    ):
        tape = taped(f)
        assert tape is not None
        assert (len(tape.ops), folded(tape)) == (1, 1)
    both = taped(lambda p, g, m: (0.5 * p + 3.0 * g, g, m))
    assert both is not None
    assert (len(both.ops), folded(both)) == (2, 1)
    of_the_step = taped(lambda p, g, a: (p - a * g, g, a), slots=2, scalars=1)
    assert of_the_step is not None
    assert (len(of_the_step.ops), folded(of_the_step)) == (1, 1)


@pytest.mark.parametrize(
    "f",
    [
        lambda p, g, m: (p - 0.5 * g, g, 0.5 * g),  # the product is a result itself
        lambda p, g, m: (torch.maximum(0.5 * g, p + 0.5 * g), g, m),  # or used again
        lambda p, g, m: (0.5 * g - p, g, m),
        lambda p, g, m: (m * g - p, g, m),
        lambda p, g, m: (p + m * g, g, m * g),
        lambda p, g, m: (p + torch.div(m, g, rounding_mode="floor"), g, m),
        lambda p, g, m: (p + (g * 2).mul_(3), g, m),  # what is written to in place
    ],
)
def test_other_products_stay(f):
    tape = taped(f, dtype=torch.float64)
    assert tape is not None
    assert folded(tape) == 0


@pytest.mark.parametrize(
    "f", [lambda p, g, m: (p - 0.5 * g, g, m), lambda p, g, m: (p + m * g, g, m), lambda p, g, m: (p + m / g, g, m)]
)
def test_products_in_low_precision_stay(f):
    tape = taped(f, dtype=torch.bfloat16)
    assert tape is not None
    assert folded(tape) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("f", "ops"),
    [
        (lambda p, g, m: (p + m * g, g, m), 1),
        (lambda p, g, m: (m / g + p, g, m), 1),
        (lambda p, g, m: (p - m / g, g, m), 1),
        (lambda p, g, m: (p - 0.25 * (m * g), g, m), 1),
        (lambda p, g, m: (p.add(m / g, alpha=-0.25), g, m), 1),
        (lambda p, g, m: (p + -0.25 * (m / g + 0.5 * p), g, m), 2),  # a step with decoupled weight decay
        (lambda p, g, m: (p - 0.25 * (m / g).add(p, alpha=0.5), g, m), 2),
        (lambda p, g, m: (p - 0.25 * (m / g + 0.5 * g), g, m), 3),  # decay of something else is a sum of its own
        (lambda p, g, m: (p * g + m * g, g, m), 2),
        (lambda p, g, m: (p + g * g, g, m), 1),
    ],
)
def test_a_product_of_slices_is_added_in_the_same_pass(f, ops: int, dtype: torch.dtype):
    tape = taped(f, dtype=dtype)
    assert tape is not None
    assert len(tape.ops) == ops
    assert folded(tape)


def test_an_input_that_is_replaced_later_is_room_for_what_comes_before():
    tape = taped(lambda p, g, m: ((p * 0.5).sqrt() * g, g, (m * m).sqrt()))
    assert tape is not None
    assert not tape.buffers
    assert not tape.copies
    tape = taped(lambda p, g, m: ((x := p * 0.5) * g, g, x * m))  # it is needed beyond
    assert tape is not None
    assert len(tape.buffers) == 1


def test_numbers_of_the_whole_parameter_are_computed_apart():
    def f(p, g, weight, beta):
        weight = beta * weight + (1 - beta) * torch.ones(())
        return p - g / weight.sqrt(), g, weight, beta

    tape = taped(f, slots=2, scalars=2)
    assert tape is not None
    assert len(tape.ops) == 2
    assert [i for i, _ in tape.common] == [2]


def test_what_tensors_have_in_common_is_computed_again_only_if_it_may_be_another():
    inputs = [*draw(0, 8, [torch.float32] * 2), torch.tensor(0.5)]
    _, tape = record(lambda: (None, (inputs[0] * inputs[2].exp(), *inputs[1:])), inputs)
    _, drawn = record(lambda: (None, (inputs[0] * torch.rand_like(inputs[2]), *inputs[1:])), inputs)
    assert tape is not None
    assert drawn is not None

    def common(tape: Tape, scalar: float) -> list[Any]:
        return tape.start([*inputs[:2], torch.tensor(scalar)])[3:]

    assert all(x is y for x, y in zip(common(tape, 0.5), common(tape, 0.5), strict=True))
    assert common(tape, 0.25) != common(tape, 0.5)
    assert common(drawn, 0.5) != common(drawn, 0.5)


def test_writing_in_place_into_what_the_function_made():
    assert taped(lambda p, g, m: (p - (g * 2).add_(m).mul_(3), g, m)) is not None

    def twice(p, g, m):
        x = p * 2
        y = x + 1
        x.add_(1)  # so x and x + 1 are not what they were
        return y * x, g, p * 2 + (x + 1)

    assert taped(twice) is not None


def test_other_dtypes_on_the_way():
    tape = taped(lambda p, g, m: ((p.float() - 0.1 * g.float()).to(p.dtype), g, m), dtype=torch.bfloat16)
    assert tape is not None
    assert {dtype for _, dtype in tape.buffers.values()} <= {torch.float32, torch.bfloat16}
    assert taped(lambda p, g, m: (torch.where(p > g, m, p), g, m)) is not None
    assert taped(lambda p, g, m: ((p * g).detach() + m, g, m.detach())) is not None


OWN = torch.arange(8.0)

IMPOSSIBLE: dict[str, Step] = {
    "a number that is read": lambda p, g, m: (p * float(g[0]), g, m),
    "a sum over the slice": lambda p, g, m: (p - g.sum(), g, m),
    "a shape": lambda p, g, m: (p - torch.ones(p.shape), g, m),
    "a view": lambda p, g, m: (p - g.view(2, 4).flatten(), g, m),
    "an input that is overwritten": lambda p, g, m: (p.add_(g), g, m),
    "something of its own for every entry": lambda p, g, m: (p + OWN, g, m),
}


@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_what_cannot_be_played_back(what: str):
    assert taped(IMPOSSIBLE[what]) is None


PROGRAM = ["add", "mul", "lerp", "sqrt", "where", "neg_", "plus", "minus", "ratio", "decay"]


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_any_program(data):
    """Random programs of pointwise operations, some in place, whose outputs are drawn among all they have computed."""
    program = data.draw(
        st.lists(st.tuples(st.sampled_from(PROGRAM), *[st.integers(0, 30)] * 2), min_size=1, max_size=12)
    )
    outputs = data.draw(st.tuples(*[st.integers(0, 30)] * 3))

    def f(*inputs):
        known = list(inputs)
        for name, i, j in program:
            a, b = known[i % len(known)], known[j % len(known)]
            if name == "neg_":
                if i % len(known) >= 3:
                    a.neg_()
                continue
            known.append(
                {
                    "add": lambda a=a, b=b: a + b,
                    "mul": lambda a=a, b=b: a * b,
                    "lerp": lambda a=a, b=b: torch.lerp(a, b, 0.25),
                    "sqrt": lambda a=a, b=b: (a * a).sqrt(),
                    "where": lambda a=a, b=b: torch.where(a > b, a, b),
                    "plus": lambda a=a, b=b: a + 0.25 * b,
                    "minus": lambda a=a, b=b: b * 0.25 - a * 0.5,
                    "ratio": lambda a=a, b=b: a + b / (a * a + 1.0),
                    "decay": lambda a=a, b=b: a - 0.25 * (b / (b * b + 1.0) + 0.5 * a),
                }[name]()
            )
        largest.extend(known)
        return [known[i % len(known)] for i in outputs]

    largest: list[Tensor] = []
    for size in (5, 8, 13):
        f(*draw(size, size, [torch.float64] * 3))
    assume(all(float(x.abs().max()) < 100 for x in largest))  # so that what is not rounded in between stays small
    assert taped(f, dtype=torch.float64, rounding=1e-7) is not None


def test_a_step_of_many_slices_is_recorded_once_for_each_setting(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(eager, "PIECE", 64)
    monkeypatch.setattr(eager, "SMALL", 8)
    monkeypatch.setattr(pieces, "SAMPLE", 16)
    seen: list[int] = []

    @fo.link(scope="element")
    def watched(lr=0.1):
        def transform(updates, state, params, lr):
            seen.append(updates.numel())
            return fo.tree.map(lambda u, lr: -lr * u, updates, lr), state

        return transform

    params = [torch.nn.Parameter(torch.ones(200)) for _ in range(3)]
    groups = [{"params": params[:2]}, {"params": params[2:], "lr": 0.2}]
    optimizer = fo.StatefulOptimizer(groups, watched())
    for p in params:
        p.grad = torch.ones(200)
    optimizer.step()
    assert seen == [16, 16]  # one sample for each learning rate
    assert [float(p.detach().unique()) for p in params] == pytest.approx([0.9, 0.9, 0.8])
    optimizer.param_groups[0]["lr"] = 0.3
    optimizer.step()
    assert [float(p.detach().unique()) for p in params] == pytest.approx([0.6, 0.6, 0.6])


# Sums over the whole tensor: several passes

SUMS: dict[str, tuple[Step, int]] = {
    "none": (lambda p, g, m: (p - 0.1 * g, g, m + g), 1),
    "a norm": (lambda p, g, m: (p - g / g.square().sum().sqrt(), g, m), 2),
    "a mean": (lambda p, g, m: (p - g * (m.sum() / m.numel()), g, torch.lerp(m, g, 0.1)), 2),
    "two at once": (lambda p, g, m: (p - g * (p.square().sum() / g.square().sum()), g, m + g), 2),
    "of what is written": (lambda p, g, m: (p + (m + g) / (m + g).sum(), g, m + g), 2),
    "a sum of what a sum is in": (lambda p, g, m: (p / (g / g.sum() + m).square().sum(), g, m * g.sum()), 3),
    "nested thrice": (lambda p, g, m: (p / (g + (m + (p + p.sum()).sum()).sum()).sum(), g, m), 5),
    "of a constant": (lambda p, g, m: (p - 0.1 * g, g, m), 1),
}


def in_passes(f: Step, size: int, cut: int, scalars: int = 0) -> Tape | None:
    """Record a function of vectors with sums, and check its tape on slices of them."""
    return by_rows(f, [*draw(size, size, [torch.float64] * 3), *[torch.tensor(0.5) for _ in range(scalars)]], cut)


def by_rows(f: Step, inputs: list[Tensor], cut: int) -> Tape | None:
    """Record a function, and check its tape on slices; what has as many rows as the first input is cut."""
    want = [t.clone() for t in f(*inputs)]
    before = [x.clone() for x in inputs]
    rows = inputs[0].shape[0]
    sliced = {i for i, x in enumerate(inputs) if x.ndim == inputs[0].ndim and x.shape[0] == rows}
    found = record_by_rows(lambda given: f(*given), inputs, sliced)
    assert all(torch.equal(x, y) for x, y in zip(inputs, before, strict=True))
    if found is None:
        return None
    tape = Tape(found)
    memory = tape.start(inputs)
    for number in range(tape.passes):
        for start in range(0, rows, cut):
            at = slice(start, min(start + cut, rows))
            tape.play(memory, [x[at] if i in sliced else x for i, x in enumerate(inputs)], number, at)
        tape.finish(memory, number)
    got = list(inputs)
    for i, new in tape.common:
        got[i] = memory[new]
    for x, y in zip(got, want, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)
    return tape


@pytest.mark.parametrize("cut", [5, 64])
@pytest.mark.parametrize("what", SUMS)
def test_sums_are_played_in_passes(what, cut):
    f, passes = SUMS[what]
    tape = in_passes(f, 23, cut)
    assert tape is not None
    assert tape.passes == passes


def test_numbers_made_of_sums():
    def f(p, g, m, weight):
        size = (g.square().sum() / g.numel()).sqrt()
        return p - g / size, g, m, 0.9 * weight + size

    tape = in_passes(f, 40, 16, scalars=1)
    assert tape is not None
    assert [i for i, _ in tape.common] == [3]


@pytest.mark.parametrize(
    "f",
    [
        lambda p, g, m: (p - g / math.sqrt(p.numel()), g, m),  # made of the length, which is what it is
        lambda p, g, m: (p - g if p.numel() > 10 else p + g, g, m),
        lambda p, g, m: (p - g.amax(), g, m * g.amin()),
        lambda p, g, m: (p - g.sum(0), g, m),
        lambda p, g, m: (p - g.mean(), g, m),
        lambda p, g, m: (p + g.new_full((), 2.0) * torch.ones_like(g), g, m * g.new_ones(1)),
        lambda p, g, m: (p + torch.where(g > g.mean(), 1.0, m), g, m),
    ],
)
def test_what_can_be_played_in_passes(f):
    assert in_passes(f, 23, 5) is not None


@pytest.mark.parametrize(
    "f",
    [
        lambda p, g, m: (p - float(g.sum()) * m, g, m),
        lambda p, g, m: (p - g if g.sum() > 0 else p, g, m),
        lambda p, g, m: (p - (g * 2).add_(g.sum()), g, m),
        lambda p, g, m: (p - g.flip(0), g, m),
        lambda p, g, m: (p - g.cumsum(0), g, m),
        lambda p, g, m: (p - g.view(-1), g, m),
        lambda p, g, m: (p - torch.cat([g[1:], g[:1]]), g, m),
        lambda p, g, m: (p - torch.arange(23.0, dtype=p.dtype), g, m),  # as long, but not cut
        lambda p, g, m: (p + g @ m, g, m),
    ],
)
def test_what_cannot_be_played_in_passes(f):
    assert in_passes(f, 23, 5) is None


def test_random_numbers_are_not_played_in_passes():
    f = lambda p, g: [p + torch.rand_like(p), g]
    assert record_by_rows(lambda given: f(*given), draw(0, 23, [torch.float64] * 2), {0, 1}) is None


# Matrices: rows are cut, columns are common to all slices


def matrices(rows: int = 23, columns: int = 40) -> list[Tensor]:
    """Return a parameter, its gradient, a mean of every row and one of every column, and a count."""
    shapes = (rows, columns), (rows, columns), (rows, 1), (1, columns)
    return [x.view(shape) for shape in shapes for x in draw(1, math.prod(shape), [torch.float64])] + [torch.tensor(1.0)]


def factored(p: Tensor, g: Tensor, row: Tensor, column: Tensor, count: Tensor) -> tuple[Tensor, ...]:
    row = torch.lerp(row, g.square().mean(1, keepdim=True), 0.1)
    column = torch.lerp(column, g.square().mean(0, keepdim=True), 0.1)
    update = g / ((row / row.mean(0, keepdim=True)).sqrt() * column.sqrt())
    return p - 0.1 * update / update.square().mean().sqrt(), g, row, column, count + 1


@pytest.mark.parametrize("cut", [1, 5, 64])
def test_sums_over_rows_and_columns(cut: int):
    tape = by_rows(factored, matrices(), cut)
    assert tape is not None
    assert tape.passes == 3
    assert [i for i, _ in tape.common] == [3, 4]
    # the row, once computed, is at hand in the passes that follow
    means = [[op.call for op in one.ops].count(torch.ops.aten.mean.out._op) for one in tape._passes]
    assert means == [1, 0, 0]
    narrow = by_rows(factored, matrices(columns=2), cut)
    assert narrow is not None
    assert not narrow._passes[0].keeps  # half as large as the whole


@pytest.mark.parametrize(
    ("f", "passes"),
    [
        (lambda p, g, r, c, n: (p - g * r * c, g, r + n, c * n, n), 1),
        (lambda p, g, r, c, n: (p - g.sum(-1, keepdim=True), g, g.amax(1, keepdim=True), c, n), 1),
        (lambda p, g, r, c, n: (p, g, r, torch.maximum(c, g.abs().amax(0, keepdim=True)), n), 2),
        (lambda p, g, r, c, n: (p + c + 2.0 * (r * g), g, r + 0.5 * r, c, n), 1),
        (lambda p, g, r, c, n: (r + 0.5 * (g / p + 0.25 * r), g, r, c, n), 1),  # r has another shape than the sum
        (lambda p, g, r, c, n: (p, g, g.sum((0, 1)) * r, c.squeeze(0).unsqueeze(0) * 2, n), 2),
        (lambda p, g, r, c, n: (p * (r * g.mean()).sum(), g, r, c, n + c.sum()), 3),
        (lambda p, g, r, c, n: (p - g.new_zeros(c.shape) * g, g, r, c, n), 1),
    ],
)
@pytest.mark.parametrize("cut", [1, 7])
def test_matrices(f: Step, passes: int, cut: int):
    tape = by_rows(f, matrices(), cut)
    assert tape is not None
    assert tape.passes == passes


@pytest.mark.parametrize(
    "f",
    [
        lambda p, g, r, c, n: (p - g @ g.mT @ g, g, r, c, n),
        lambda p, g, r, c, n: (p - g.mT.mT, g, r, c, n),
        lambda p, g, r, c, n: (p - g.sum(-1).unsqueeze(-1), g, r, c, n),
        lambda p, g, r, c, n: (p - torch.linalg.vector_norm(g, dim=0, keepdim=True), g, r, c, n),
        lambda p, g, r, c, n: (p, g, c.mT[: len(r)], c, n),  # what is common where something is cut
        lambda p, g, r, c, n: (p, g, r, r.mT[:, :1].expand(c.shape), n),
    ],
)
def test_matrices_that_cannot_be_cut(f: Step):
    assert by_rows(f, matrices(), 7) is None


def test_a_square_matrix_is_cut_once():
    """Where rows and columns are equally many, shapes do not tell which axis is the one that is cut."""
    square = lambda: [*matrices(6, 6)[:3], torch.arange(6.0, dtype=torch.float64)]
    assert by_rows(lambda p, g, r, v: (p - g.sum(0), g, r, v), square(), 4) is not None  # a vector of the columns
    assert by_rows(lambda p, g, r, v: (p - g.sum(1), g, r, v), square(), 4) is None  # one of the rows
    assert by_rows(lambda p, g, r, v: (p - v, g, r, g.sum(0)), square(), 4) is not None
    assert by_rows(lambda p, g, r, v: (p - v, g, r, g.sum(1)), square(), 4) is None


def program(f: Step, shape: tuple[int, ...]) -> Program:
    ones = torch.ones(shape, dtype=torch.float64)
    found = record_by_rows(lambda given: f(*given), [ones, ones.clone(), torch.tensor(1.0)], {0, 1})
    assert found is not None
    return found


def test_what_does_not_look_at_axes_is_the_same_for_vectors():
    f = lambda p, g, n: (p - 0.1 * g / g.square().sum().sqrt(), g, n + 1)
    flat = program(f, (4, 6)).flattened()
    assert flat is not None
    assert flat.is_like(program(f, (24,)))
    assert flat.is_like(program(f, (5,)))  # how many rows there are is not part of it
    p, g = draw(0, 24, [torch.float64] * 2)
    tape, inputs = Tape(flat), [p.clone(), g, torch.tensor(1.0)]
    memory = tape.start(inputs)
    for number in range(tape.passes):
        for at in (slice(0, 10), slice(10, 24)):
            tape.play(memory, [inputs[0][at], g[at], inputs[2]], number, at)
        tape.finish(memory, number)
    torch.testing.assert_close(inputs[0], p - 0.1 * g / g.norm(), rtol=1e-12, atol=1e-12)
    for axes in (0, 1, (0, 1)):
        assert program(lambda p, g, n, axes=axes: (p - g.sum(axes, keepdim=True), g, n), (4, 6)).flattened() is None
    assert program(lambda p, g, n: (p - g.amax(1, keepdim=True), g, n), (4, 6)).flattened() is None
    assert program(lambda p, g, n: (p - g.new_ones(1, 6), g, n), (4, 6)).flattened() is None


def test_programs_that_are_alike():
    f = lambda p, g, n: (p - 0.1 * g, g, n)
    assert program(f, (4, 6)).is_like(program(f, (9, 6)))
    assert not program(f, (4, 6)).is_like(program(f, (4, 7)))
    assert not program(f, (4, 6)).is_like(program(lambda p, g, n: (p - 0.2 * g, g, n), (4, 6)))
    assert not program(f, (4, 6)).is_like(program(lambda p, g, n: (p + 0.1 * g, g, n), (4, 6)))
    assert not program(f, (4, 6)).is_like(program(lambda p, g, n: (g - 0.1 * p, g, n), (4, 6)))
    assert not program(f, (4, 6)).is_like(program(lambda p, g, n: (p - 0.1 * g, g, n + 1), (4, 6)))
    mean = lambda p, g, n: (p - g.mean(), g, n)  # the number of rows, as a number
    assert not program(mean, (4, 6)).is_like(program(mean, (5, 6)))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_program_of_matrices(data):
    names = ["add", "mul", "lerp", "scaled", "rows", "columns", "largest", "all"]
    program = data.draw(st.lists(st.tuples(st.sampled_from(names), *[st.integers(0, 30)] * 2), min_size=1, max_size=10))
    outputs = data.draw(st.tuples(*[st.integers(0, 30)] * 4))
    cut = data.draw(st.integers(1, 12))

    def f(*inputs):
        known = list(inputs)
        for name, i, j in program:
            a, b = known[i % len(known)], known[j % len(known)]
            known.append(
                {
                    "add": lambda a=a, b=b: 0.5 * (a + b),
                    "mul": lambda a=a, b=b: a * b / 2,
                    "lerp": lambda a=a, b=b: a + 0.25 * (b - a),
                    "scaled": lambda a=a, b=b: a / (b.square().sum() / b.numel()),
                    "rows": lambda a=a, b=b: b * a.mean(-1, keepdim=True) if a.ndim else a,
                    "columns": lambda a=a, b=b: b * a.mean(0, keepdim=True) if a.ndim else a,
                    "largest": lambda a=a, b=b: a + b.amax(),
                    "all": lambda a=a, b=b: a * b.mean(),
                }[name]()
            )
        # of each shape one that was computed, or the input itself
        alike = [[x for x in known if x.shape == inputs[i].shape] for i in range(4)]
        return [*(found[n % len(found)] for found, n in zip(alike, outputs, strict=True)), inputs[4]]

    values = f(*matrices(11, 20))
    assume(all(float(x.min()) > 1e-3 and float(x.max()) < 1e3 for x in values))
    by_rows(f, matrices(11, 20), cut)  # some cannot be: a row where a column is


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_program_with_sums(data):
    names = ["add", "mul", "lerp", "sqrt", "scaled", "mean"]
    program = data.draw(st.lists(st.tuples(st.sampled_from(names), *[st.integers(0, 30)] * 2), min_size=1, max_size=10))
    outputs = data.draw(st.tuples(*[st.integers(0, 30)] * 3))

    def f(*inputs):
        known = list(inputs)
        for name, i, j in program:
            a, b = known[i % len(known)], known[j % len(known)]
            known.append(
                {
                    "add": lambda a=a, b=b: 0.5 * (a + b),
                    "mul": lambda a=a, b=b: a * b / 2,
                    "lerp": lambda a=a, b=b: torch.lerp(a, b, 0.25),
                    "sqrt": lambda a=a, b=b: (a * b).sqrt(),
                    "scaled": lambda a=a, b=b: a / (b.square().sum() / b.numel()),
                    "mean": lambda a=a, b=b: a * (b.sum() / b.numel()),
                }[name]()
            )
        return [known[i % len(known)] for i in outputs]

    values = f(*draw(29, 29, [torch.float64] * 3))
    assume(all(float(x.min()) > 1e-3 and float(x.max()) < 1e3 for x in values))
    assert in_passes(f, 29, 8) is not None


@pytest.mark.parametrize(
    "tx",
    [
        fo.lamb(0.1, weight_decay=0.1),
        fo.larc(0.1),
        fo.chain(fo.clip_by_block_rms(0.1), fo.adam()),
        fo.chain(fo.clip_by_global_norm(0.1), fo.adam()),
    ],
)
def test_a_step_with_sums_holds_little(tx, monkeypatch):
    monkeypatch.setattr(eager, "PIECE", 1 << 14)
    monkeypatch.setattr(pieces, "SAMPLE", 1 << 10)
    monkeypatch.setattr(arithmetic, "CHUNK", 1 << 14)  # the same for norms
    generator = torch.Generator().manual_seed(0)
    draw = lambda: torch.randn(1 << 18, generator=generator)
    both = [torch.nn.Parameter(draw()) for _ in range(2)]
    optimizer = fo.StatefulOptimizer(both, tx)
    for param in both:
        param.grad = draw()
    with _Counting() as counting:
        optimizer.step()
    # a few slices, and nothing of the size of a parameter; leaf by leaf it was 7 to 9 times that
    assert counting.most < 8 * (4 << 14) < both[0].nbytes


def test_recordings_are_kept_while_hypers_stay(monkeypatch: pytest.MonkeyPatch):
    recorded = []
    real = pieces.record
    monkeypatch.setattr(eager, "SMALL", 8)
    monkeypatch.setattr(eager, "PIECE", 64)
    monkeypatch.setattr(pieces, "record", lambda *args: recorded.append(1) or real(*args))
    ours, theirs = (torch.nn.Parameter(torch.ones(200, dtype=torch.float64)) for _ in range(2))
    lr = torch.tensor(0.1, dtype=torch.float64)
    optimizer = fo.StatefulOptimizer([ours], fo.adamw(), lr=lr)
    torchs = torch.optim.AdamW([theirs], lr=0.1, weight_decay=0.01)

    def step(seed: int) -> int:
        for param in (ours, theirs):
            param.grad = torch.randn(200, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        before = len(recorded)
        optimizer.step()
        torchs.step()
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
        return len(recorded) - before

    assert [step(i) for i in range(3)] == [1, 0, 0]
    optimizer.param_groups[0]["lr"].fill_(0.3)  # in the tensor that the recording knows, as torch's schedulers do it
    torchs.param_groups[0]["lr"] = 0.3
    assert step(3) == 0
    assert len(optimizer._step.tapes) == 1  # pyright: ignore[reportAttributeAccessIssue]
    before = len(recorded)
    for i in range(20):
        optimizer.set_hypers(lr=0.1 / (i + 1))
        optimizer.step()
    assert len(recorded) - before == 20
    assert len(optimizer._step.tapes) <= pieces.KEPT  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("make", [fo.adamw, fo.lamb])
def test_a_recording_outlasts_the_norm_of_its_step(make: Any, monkeypatch: pytest.MonkeyPatch):
    recorded = []
    for name in ("record", "record_by_rows"):
        real = getattr(pieces, name)
        monkeypatch.setattr(pieces, name, lambda *args, real=real: recorded.append(1) or real(*args))
    monkeypatch.setattr(eager, "SMALL", 8)
    monkeypatch.setattr(eager, "PIECE", 64)
    tx = fo.chain(fo.clip_by_global_norm(0.5), make(0.1))
    params = {"w": torch.ones(200, dtype=torch.float64), "v": torch.ones(100, dtype=torch.float64)}
    own = {key: torch.nn.Parameter(p.clone()) for key, p in params.items()}
    optimizer, state = fo.StatefulOptimizer(own.items(), tx), tx.init(params)
    for step in range(4):
        grads = {key: (step + 1) * (p + step).cos() for key, p in params.items()}
        for key, p in own.items():
            p.grad = grads[key]
        optimizer.step()
        params, state = tx.update(grads, state, params)
        torch.testing.assert_close({key: p.detach() for key, p in own.items()}, params, rtol=1e-12, atol=1e-12)
    # of two parameters and four steps: where sums are taken one for each shape
    assert len(recorded) == (1 if make is fo.adamw else 2)


def test_a_norm_that_is_known_is_not_computed_again():
    tx, updates = fo.clip_by_global_norm(1.0), {"w": torch.full((4,), 3.0, dtype=torch.float64)}
    own, _ = tx.transform(updates, (), updates)
    given, _ = tx.transform(updates, (), updates, updates_norm=torch.tensor(12.0, dtype=torch.float64))
    torch.testing.assert_close(own["w"], torch.full((4,), 0.5, dtype=torch.float64))
    torch.testing.assert_close(given["w"], torch.full((4,), 0.25, dtype=torch.float64))


def test_derivatives_are_finite_without_gradients_around():
    tx, params = fo.adamw(), {"w": torch.ones(3, dtype=torch.float64)}
    state = tx.init(params)
    after = lambda grad: tx.update({"w": grad}, state, params)[0]["w"].sum()
    with torch.no_grad():  # where steps spare the guard of the root
        assert torch.func.grad(after)(torch.zeros(3, dtype=torch.float64)).isfinite().all()
