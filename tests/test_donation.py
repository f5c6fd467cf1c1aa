"""fo.compile: outputs in the memory of arguments, one graph whatever the numbers, refusal of what cannot be donated."""

from __future__ import annotations

import functools
import math
import re
from collections import OrderedDict, defaultdict
from typing import Any

import pytest
import torch

import functopt as fo
from functopt import tree


def make() -> tuple[fo.Transform, dict, dict]:
    params = {"w": torch.arange(6.0).reshape(2, 3) / 10, "b": torch.ones(3)}
    grads = {"w": torch.ones(2, 3) / 3, "b": torch.arange(3.0)}
    return fo.adamw(), params, grads


def update(tx):
    return lambda params, state, grads, hypers: tx.update(grads, state, params, hypers)


def test_outputs_take_the_place_of_the_donated_arguments():
    tx, params, grads = make()
    want, want_state = tx.update(grads, tx.init(params), params, {"lr": 0.1})
    state = tx.init(params)
    places = [leaf.data_ptr() for leaf in tree.leaves((params, state))]
    step = fo.compile(update(tx), donate=(0, 1), backend="aot_eager")
    out, out_state = step(params, state, grads, {"lr": 0.1})
    assert out is params
    assert out_state is state
    assert [leaf.data_ptr() for leaf in tree.leaves((out, out_state))] == places
    for got, wanted in zip(tree.leaves((out, out_state)), tree.leaves((want, want_state)), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6)  # float32


def test_without_donation_nothing_is_touched():
    tx, params, grads = make()
    before = [leaf.clone() for leaf in tree.leaves((params, grads))]
    step = fo.compile(update(tx), backend="aot_eager")
    out, _ = step(params, tx.init(params), grads, {})
    assert all(torch.equal(a, b) for a, b in zip(before, tree.leaves((params, grads)), strict=True))
    assert not torch.equal(out["w"], params["w"])


def test_other_outputs_are_returned_after_the_donated_ones():
    step = fo.compile(lambda x, y: (x + y, y * 2, y * 3), donate=(0,), backend="eager")
    x, y = torch.ones(2), torch.ones(2)
    out, twice, thrice = step(x, y)
    assert out is x
    assert (x.tolist(), twice.tolist(), thrice.tolist()) == ([2, 2], [2, 2], [3, 3])


def test_no_number_recompiles():
    from torch._dynamo.testing import CompileCounter

    tx, params, grads = make()
    counter = CompileCounter()
    step = fo.compile(update(tx), backend=counter)
    for lr in (0.1, 0.2, 0.3):
        step(params, tx.init(params), grads, {"lr": lr, "weight_decay": 1 - lr})
    assert counter.frame_count == 1


def test_no_setting_of_a_schedule_recompiles():
    from torch._dynamo.testing import CompileCounter

    _, params, grads = make()
    tx = fo.scheduled(fo.sgd())
    counter = CompileCounter()
    step = fo.compile(update(tx), backend=counter)
    for peak in (0.1, 0.2, 0.3):
        step(params, tx.init(params), grads, {"lr": fo.cosine_decay_schedule(peak, 10.0 / peak)})
    assert counter.frame_count == 1


def test_many_compiled_functions_do_not_share_the_limit_of_recompiles():
    for i in range(12):  # torch gives up after 8 graphs for one code object
        tx = fo.chain(fo.scale(float(i + 1)))
        step = fo.compile(update(tx), backend="eager")
        out, _ = step({"x": torch.ones(1)}, tx.init({"x": torch.ones(1)}), {"x": torch.ones(1)}, {})
        assert out["x"].item() == i + 2


def test_defaults_stay_constants_under_vmap():
    # the second optimizer differs in a default: torch would make that float a symbol, which vmap cannot lower
    for beta in (0.9, 0.8):
        tx = fo.adamw(beta1=beta)
        params = {"x": torch.ones(2, 3)}
        step = fo.compile(torch.func.vmap(tx.update), backend="inductor")
        out, _ = step(params, torch.func.vmap(tx.init)(params), params)
        assert torch.isfinite(out["x"]).all()


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"x": torch.ones(1).expand(3), "y": torch.ones(3)}, r"argument 0 at 'x' is an expanded view"),
        ({"x": (t := torch.ones(3)), "y": t}, r"argument 0 at 'y' is the same memory as argument 0 at 'x'"),
        ({"x": 1.0, "y": torch.ones(3)}, r"argument 0 at 'x' is donated but is a float"),
    ],
)
def test_what_cannot_be_donated_is_refused_by_its_path(params, message):
    step = fo.compile(lambda p: (p,), donate=(0,), backend="eager")
    with pytest.raises(ValueError, match=message):
        step(params)
    assert torch.equal(tree.leaves(params["y"])[0], torch.ones(3))


def _inductor_config() -> dict[str, Any]:
    from torch._inductor import config

    return config.get_config_copy()  # pyright: ignore[reportAttributeAccessIssue]


def large_buffers(run: Any, entries: int) -> list[str]:
    """Return the allocations of as many entries as that in the code that is generated for a call."""
    from torch._inductor.utils import run_and_get_code

    _, (code,) = run_and_get_code(run)
    sizes = re.findall(r"= empty_strided_cpu\(\(([\d, ]*)\)", code)
    return [size for size in sizes if math.prod(int(n) for n in re.findall(r"\d+", size)) >= entries]


def test_an_update_that_is_used_twice_is_computed_twice_and_not_kept():
    # LAMB's is used for its norm and for the step
    tx, params, grads = fo.lamb(), {"w": torch.rand(64, 64)}, {"w": torch.rand(64, 64)}
    params, grads = fo.pack(params), fo.pack(grads)
    state = tx.init(params)
    step = fo.compile(update(tx), donate=(0, 1))
    assert large_buffers(lambda: step(params, state, grads, {}), 64 * 64) == []


def test_a_stateful_step_keeps_no_update():
    # with bookkeeping for each parameter it is made of more tensors than torch would put into one kernel
    tx = fo.chain(fo.clip_by_global_norm(1.0), fo.adamw(), fo.average_params(0.99))
    params = [torch.rand(64, 64, requires_grad=True) for _ in range(2)]
    optimizer = fo.StatefulOptimizer(params, tx, compile=True)
    for param in params:
        param.grad = torch.rand(64, 64)
    assert large_buffers(optimizer.step, 64 * 64) == []


@pytest.mark.parametrize("product", [False, True])
def test_a_function_with_a_product_in_it_is_left_to_torch(product: bool):
    def fn(packed: Any) -> tuple[torch.Tensor, ...]:
        x = [*fo.unpack(packed).values()]
        total = functools.reduce(torch.add, x)  # is summed by rows and by columns: torch keeps it
        sums = total.square().sum(0), total.exp2().sum(1)
        return (*sums, x[0][:8] @ x[1][:, :8]) if product else sums

    packed = fo.pack({str(i): torch.rand(64, 64) for i in range(8)})
    before = _inductor_config()
    ours = large_buffers(lambda: fo.compile(fn)(packed), 64 * 64)
    assert _inductor_config() == before
    usual = large_buffers(lambda: torch.compile(fn, fullgraph=True)(packed), 64 * 64)
    assert len(usual) == 1
    assert ours == (usual if product else [])


@pytest.mark.parametrize(
    ("kind", "fits"), [(dict, True), (functools.partial(defaultdict, list), True), (OrderedDict, False)]
)
def test_keys_in_another_order_fit_where_order_means_nothing(kind: Any, fits: bool):
    step = fo.compile(lambda x: (kind([("b", x["b"] + 1), ("a", x["a"] + 2)]),), donate=(0,), backend="eager")
    given = kind([("a", torch.zeros(2)), ("b", torch.zeros(2))])
    if fits:
        step(given)
        assert [float(given[key][0]) for key in "ab"] == [2.0, 1.0]
    else:
        with pytest.raises(ValueError, match="output 0"):
            step(given)
