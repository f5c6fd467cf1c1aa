"""A graph called by itself computes what the compiled function does, or says that it cannot."""

from typing import Any

import pytest
import torch
from test_sweep import loss_fn, make_batches, make_params

import functopt as fo
from functopt.direct import Direct
from functopt.sweep.members import Members


def compiled(fn: Any) -> tuple[Any, Direct]:
    direct = Direct()
    return torch.compile(fn, backend=direct, fullgraph=True), direct


@pytest.fixture(autouse=True)
def _quickly(_graphs_only: None) -> None:
    pass


def test_the_graph_takes_new_tensors_in_the_place_of_the_old():
    step, direct = compiled(lambda a, b, c: (a - 2 * b, b * c))
    a, b, c = torch.randn(3, 4)
    difference, product = step(a, b, c)
    call = direct.again([b], [c, a], [product, difference])
    assert call is not None
    new = torch.randn(2, 4)
    got = call([new[0], new[1]])
    torch.testing.assert_close(got, [b * new[0], new[1] - 2 * b], rtol=0, atol=0)


def test_what_is_given_twice_counts_once():
    step, direct = compiled(lambda a, b: a * b)
    a = torch.randn(4)
    call = direct.again([], [a, a], [step(a, a)])
    assert call is not None
    torch.testing.assert_close(call([2 * a, 2 * a]), [4 * a * a], rtol=0, atol=0)


class Kept:
    value = torch.zeros(4)


def test_a_closed_over_tensor_is_not_for_a_graph_by_itself():
    kept = Kept()
    step, direct = compiled(lambda a: a + kept.value)
    a = torch.randn(4)
    assert direct.again([], [a], [step(a)]) is None


def test_what_is_left_in_an_object_is_not_for_a_graph_by_itself():
    kept = Kept()

    def fn(a: torch.Tensor) -> torch.Tensor:
        kept.value = a + 1
        return a * 2

    step, direct = compiled(fn)
    a = torch.randn(4)
    assert direct.again([], [a], [step(a)]) is None


def test_an_argument_that_comes_back_is_not_for_a_graph_by_itself():
    step, direct = compiled(lambda a, b: (a, a + b))
    a, b = torch.randn(2, 4)
    assert direct.again([], [a, b], [*step(a, b)]) is None


def test_nothing_was_called_since():
    step, direct = compiled(lambda a: a + 1)
    a = torch.randn(4)
    assert direct.again([], [], []) is None
    out = step(a)
    assert direct.again([], [a], [out]) is not None
    assert direct.again([], [a], [out]) is None


# In sweeps


def programs_of(monkeypatch: pytest.MonkeyPatch, loss: Any) -> tuple[fo.SweepResult, list[Any]]:
    """Sweep, and say which blocks of steps are called how."""
    seen: dict[int, Members] = {}
    advance = Members.advance
    monkeypatch.setattr(
        Members, "advance", lambda self, *args: seen.setdefault(id(self), self) and advance(self, *args)
    )
    result = fo.sweep(loss, make_params(), fo.adamw(), {"lr": [0.01, 0.1]}, make_batches(20))
    (members,) = seen.values()
    return result, [*members._programs.values()]


def test_steps_of_a_sweep_are_called_by_themselves(monkeypatch: pytest.MonkeyPatch):
    result, programs = programs_of(monkeypatch, loss_fn)
    assert [program is not None for program in programs] == [True]
    eager = fo.sweep(loss_fn, make_params(), fo.adamw(), {"lr": [0.01, 0.1]}, make_batches(20), compile=False)
    torch.testing.assert_close(result.losses, eager.losses, rtol=1e-4, atol=1e-6)  # float32, other kernels


def test_a_loss_that_reads_a_tensor_of_its_own_is_called_through_torch(monkeypatch: pytest.MonkeyPatch):
    scale = Kept()
    scale.value = torch.tensor(2.0)
    doubled = lambda params, batch: scale.value * loss_fn(params, batch)
    result, programs = programs_of(monkeypatch, doubled)
    assert programs == [None]
    half, _ = programs_of(monkeypatch, loss_fn)
    torch.testing.assert_close(result.losses[0], 2 * half.losses[0])


def test_a_batch_of_another_shape_is_another_program():
    batches = make_batches(6)
    short = [tuple(part[:5] for part in batch) for batch in batches]
    mixed = [batch for pair in zip(batches, short, strict=True) for batch in pair]
    sweep = lambda compile: fo.sweep(loss_fn, make_params(), fo.adamw(), {"lr": [0.01, 0.1]}, mixed, compile=compile)
    torch.testing.assert_close(sweep(True).losses, sweep(False).losses, rtol=1e-4, atol=1e-6)  # float32
