"""Complex parameters: the steps of torch.optim and of optax, and what is said without the wrapper."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import functopt as fo
from functopt import tree

PAIRS: dict[str, tuple[Any, Any]] = {
    "sgd": (lambda p: torch.optim.SGD(p, 0.003, 0.9, weight_decay=0.1), lambda: fo.sgd(0.003, 0.9, weight_decay=0.1)),
    "adam": (lambda p: torch.optim.Adam(p, 0.1), lambda: fo.adam(0.1)),
    "adamw": (lambda p: torch.optim.AdamW(p, 0.1, weight_decay=0.1), lambda: fo.adamw(0.1, weight_decay=0.1)),
    "rmsprop": (lambda p: torch.optim.RMSprop(p, 0.1, centered=True), lambda: fo.rmsprop(0.1, centered=True)),
    "radam": (lambda p: torch.optim.RAdam(p, 0.1), lambda: fo.radam(0.1)),
    "adadelta": (lambda p: torch.optim.Adadelta(p, 1.0), lambda: fo.adadelta(1.0)),
}


def start() -> dict[str, torch.Tensor]:
    draw = np.random.default_rng(0)
    z = draw.standard_normal((3, 2)) + 1j * draw.standard_normal((3, 2))
    return {"z": torch.from_numpy(z), "x": torch.from_numpy(draw.standard_normal(4))}


def loss(params: Any) -> torch.Tensor:
    z, x = params["z"], params["x"]
    return (z * z - (1 + 2j)).abs().square().sum() + (z.sum() * x.sum()).real.square() + x.square().sum()


@pytest.mark.parametrize("name", PAIRS)
def test_steps_are_those_of_torch(name: str):
    theirs, ours = PAIRS[name]
    tx, params = fo.split_real_and_imaginary(ours()), start()
    state = tx.init(params)
    own = {key: torch.nn.Parameter(leaf.clone()) for key, leaf in start().items()}
    optimizer = theirs(own.values())
    for _ in range(20):
        params, state = tx.update(torch.func.grad(loss)(params), state, params)
        optimizer.zero_grad()
        loss(own).backward()
        optimizer.step()
        for key, leaf in own.items():
            assert params[key].dtype == leaf.dtype
            torch.testing.assert_close(params[key], leaf.detach(), rtol=1e-10, atol=1e-12)  # 20 steps in float64


def test_steps_are_those_of_optax():
    optax, jax = pytest.importorskip("optax"), pytest.importorskip("jax")
    theirs = optax.contrib.split_real_and_imaginary(optax.adam(0.1))
    tx, params, grads = fo.split_real_and_imaginary(fo.adam(0.1)), start()["z"], start()["z"] * (0.3 + 0.1j)
    state = tx.init(params)
    their_params = jax.numpy.asarray(params.numpy())
    their_state = theirs.init(their_params)
    for _ in range(10):
        params, state = tx.update(grads, state, params)
        updates, their_state = theirs.update(jax.numpy.asarray(grads.numpy()), their_state, their_params)
        their_params = their_params + updates
    # complex64 if jax has not been told to use 64 bits
    np.testing.assert_allclose(params.numpy(), np.asarray(their_params), rtol=1e-4, atol=1e-5)


def test_the_state_has_a_pair_for_each_complex_parameter():
    tx, params = fo.split_real_and_imaginary(fo.adam()), start()
    total = tree.get(tx.init(params), "mu.total")
    assert total["z"]._fields == ("real", "imaginary")
    assert {leaf.dtype for leaf in tree.leaves(total)} == {torch.float64}
    assert total["x"].shape == (4,)


def test_hypers_masks_and_schedules_speak_of_the_parameters():
    params = start()
    grads = torch.func.grad(loss)(params)
    lr = {"z": 0.1, "x": fo.linear_schedule(0.2, 0.0, 4)}
    tx = fo.split_real_and_imaginary(fo.adamw(lr, weight_decay=0.5, mask={"z": False, "x": True}))
    new, state = tx.update(grads, tx.init(params), params)
    alone = fo.split_real_and_imaginary(fo.adamw(0.1, weight_decay=0.0))
    want, _ = alone.update({"z": grads["z"]}, alone.init({"z": params["z"]}), {"z": params["z"]})
    assert torch.equal(new["z"], want["z"])
    assert int(state.count) == 1


def test_a_loss_is_given_complex_parameters():
    tx = fo.split_real_and_imaginary(fo.sam(fo.sgd(0.1), opaque_mode=True))
    params = start()
    new, _ = tx.update(torch.func.grad(loss)(params), tx.init(params), params, value_fn=loss)
    grads = torch.func.grad(loss)(params)
    norm = torch.cat([torch.view_as_real(grads["z"]).reshape(-1), grads["x"]]).norm()
    ahead = tree.map(lambda p, g: p + 0.05 * g / norm, params, grads)
    want = tree.map(lambda p, g: p - 0.1 * g, params, torch.func.grad(loss)(ahead))
    for key in params:
        torch.testing.assert_close(new[key], want[key], rtol=1e-12, atol=1e-13)


def test_it_batches_compiles_and_has_derivatives():
    tx, params = fo.split_real_and_imaginary(fo.adam(0.1)), start()
    grads = torch.func.grad(loss)(params)

    def step(lr: torch.Tensor) -> Any:
        return tx.update(grads, tx.init(params), params, {"lr": lr})[0]

    rates = torch.tensor([0.1, 0.2], dtype=torch.float64)
    both = torch.func.vmap(step)(rates)
    torch.testing.assert_close(both["z"][1], step(rates[1])["z"])
    compiled = torch.compile(step, fullgraph=True, backend="eager")(rates[1])
    torch.testing.assert_close(compiled["z"], step(rates[1])["z"])
    assert torch.func.grad(lambda lr: loss(step(lr)))(rates[0]).isfinite()


@pytest.mark.parametrize("compile", [False, {"backend": "aot_eager"}], ids=["eager", "compiled"])
def test_classic_loops_take_complex_parameters(compile: Any):
    own, theirs = ({key: torch.nn.Parameter(leaf.clone()) for key, leaf in start().items()} for _ in range(2))
    ours = fo.StatefulOptimizer(own.items(), fo.split_real_and_imaginary(fo.adam(0.1)), compile=compile)
    reference = torch.optim.Adam(theirs.values(), 0.1)
    for _ in range(4):
        for params, optimizer in ((own, ours), (theirs, reference)):
            optimizer.zero_grad()
            loss(params).backward()
            optimizer.step()
        ours.load_state_dict(ours.state_dict())
    for key in own:
        torch.testing.assert_close(own[key].detach(), theirs[key].detach(), rtol=1e-11, atol=1e-13)


def test_without_the_wrapper_the_error_says_what_to_do():
    for tx in (fo.adam(), fo.chain(fo.clip(1.0), fo.split_real_and_imaginary(fo.adam()))):
        with pytest.raises(TypeError, match=r"'z' is a complex128 tensor.*split_real_and_imaginary\(\.\.\.\)"):
            tx.init(start())
    with pytest.raises(TypeError, match=r"StatefulOptimizer: .* Wrap the whole optimizer"):
        fo.StatefulOptimizer([torch.nn.Parameter(start()["z"])], fo.adam())
    with pytest.raises(TypeError, match="inner is a function, expected a Transform"):
        fo.split_real_and_imaginary(fo.adam)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="a int64 tensor; expected"):
        fo.split_real_and_imaginary(fo.adam()).init(torch.ones(2, dtype=torch.int64))
