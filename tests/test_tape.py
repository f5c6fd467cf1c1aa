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
from functopt import eager
from functopt.folding import FOLDED
from functopt.recording import record, record_with_sums
from functopt.sweep.memory import _Counting
from functopt.tape import Tape
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
        for i, new in tape.scalars:
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
    assert [i for i, _ in tape.scalars] == [2]


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
    assert {*tape.buffers.values()} <= {torch.float32, torch.bfloat16}
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
    monkeypatch.setattr(eager, "SAMPLE", 16)
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
    """Record a function with sums, and check its tape on a tensor in slices."""
    inputs = [*draw(size, size, [torch.float64] * 3), *[torch.tensor(0.5) for _ in range(scalars)]]
    want = [t.clone() for t in f(*inputs)]
    samples = [[x[:n] if x.ndim else x for x in inputs] for n in (11, 7)]
    before = [x.clone() for x in inputs]
    tape = record_with_sums(lambda given: f(*given), samples)
    assert all(torch.equal(x, y) for x, y in zip(inputs, before, strict=True))
    if tape is None:
        return None
    slices = [[x[i : i + cut] if x.ndim else x for x in inputs] for i in range(0, size, cut)]
    memory = tape.start(inputs, size)
    for number in range(tape.passes):
        for part in slices:
            tape.play(memory, part, number)
        tape.finish(memory, number)
    got = list(inputs)
    for i, new in tape.scalars:
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
    assert [i for i, _ in tape.scalars] == [3]


def test_a_number_that_is_the_length_of_one_sample_only_by_accident():
    tape = in_passes(lambda p, g, m: (p * 11 + g.sum() / 7, g, m), 23, 5)
    assert tape is not None
    assert not tape.lengths


@pytest.mark.parametrize(
    "f",
    [
        lambda p, g, m: (p - g / math.sqrt(p.numel()), g, m),  # a number that is made of the length
        lambda p, g, m: (p - g.amax(), g, m),
        lambda p, g, m: (p - g.sum(0), g, m),
        lambda p, g, m: (p - float(g.sum()) * m, g, m),
        lambda p, g, m: (p - (g * 2).add_(g.sum()), g, m),
        lambda p, g, m: (p - g if p.numel() > 10 else p + g, g, m),
    ],
)
def test_what_cannot_be_played_in_passes(f):
    assert in_passes(f, 23, 5) is None


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
    monkeypatch.setattr(eager, "SAMPLE", 1 << 10)
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
    real = eager.record
    monkeypatch.setattr(eager, "SMALL", 8)
    monkeypatch.setattr(eager, "PIECE", 64)
    monkeypatch.setattr(eager, "record", lambda *args: recorded.append(1) or real(*args))
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
    assert len(optimizer._step.tapes) <= eager.KEPT  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("make", [fo.adamw, fo.lamb])
def test_a_recording_outlasts_the_norm_of_its_step(make: Any, monkeypatch: pytest.MonkeyPatch):
    recorded = []
    for name in ("record", "record_with_sums"):
        real = getattr(eager, name)
        monkeypatch.setattr(eager, name, lambda *args, real=real: recorded.append(1) or real(*args))
    monkeypatch.setattr(eager, "SMALL", 8)
    monkeypatch.setattr(eager, "PIECE", 64)
    monkeypatch.setattr(eager, "SAMPLES_OF_LEAF", (31, 17))
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
    assert len(recorded) == 1  # of two parameters and four steps


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
