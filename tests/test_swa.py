"""Stochastic weight averaging beside torch.optim.swa_utils, live."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import swa_utils

import functopt as fo
from functopt import tree


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 2)).double()


def batches(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(16, 4, generator=generator, dtype=torch.float64) for _ in range(count)]


def gradients(model: nn.Module, batch: torch.Tensor) -> None:
    model.zero_grad()
    model(batch).square().sum().backward()


def trained(tx: fo.Transform, steps: int) -> tuple[nn.Module, Any, Any]:
    model = net()
    params = {name: p.detach().clone() for name, p in model.named_parameters()}
    state = tx.init(params)
    for batch in batches(steps):
        gradients(model, batch)
        grads = {name: p.grad for name, p in model.named_parameters()}
        params, state = tx.update(grads, state, params)
        for name, p in model.named_parameters():
            p.data.copy_(params[name])
    return model, params, state


@pytest.mark.parametrize(("begin", "every", "steps"), [(0, 1, 8), (3, 2, 10), (5, 5, 21)])
def test_the_mean_is_that_of_torch(begin: int, every: int, steps: int):
    _, params, state = trained(fo.chain(fo.sgd(0.01, 0.9), fo.swa_params(begin, every)), steps)
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9)
    averaged = swa_utils.AveragedModel(model)
    for i, batch in enumerate(batches(steps), 1):
        gradients(model, batch)
        optimizer.step()
        if i > begin and (i - begin) % every == 0:
            averaged.update_parameters(model)
    assert float(tree.get(state, "average.weight")) == int(averaged.n_averaged)
    got = fo.averaged_params(state, params)
    for name, p in averaged.module.named_parameters():
        torch.testing.assert_close(got[name], p.detach(), rtol=1e-12, atol=1e-14)
    # and the statistics of batch normalisation with them
    swa_utils.update_bn(batches(5), averaged)
    fresh = net()
    before = {name: buffer.clone() for name, buffer in fresh.named_buffers()}
    buffers = fo.update_bn(fresh, got, batches(5))
    for name, buffer in averaged.module.named_buffers():
        torch.testing.assert_close(buffers[name], buffer, rtol=1e-12, atol=1e-14)
    assert all(torch.equal(buffer, before[name]) for name, buffer in fresh.named_buffers())
    assert fresh[1].momentum == 0.1  # pyright: ignore[reportIndexIssue]


def test_update_bn_takes_the_input_of_a_pair_and_leaves_other_modules_alone():
    model = net().eval()
    params = dict(model.named_parameters())
    pairs = [(batch, torch.zeros(16)) for batch in batches(3)]
    got, want = fo.update_bn(model, params, pairs), fo.update_bn(model, params, batches(3))
    for name in want:
        assert torch.equal(got[name], want[name])
    assert not model.training
    assert fo.update_bn(nn.Linear(4, 2).double(), dict(nn.Linear(4, 2).double().named_parameters()), batches(1)) == {}


def test_nothing_is_averaged_before_the_start():
    tx = fo.chain(fo.sgd(0.1), fo.swa_params(swa_start=3))
    params = {"w": torch.ones(2)}
    state = tx.init(params)
    for _ in range(3):
        params, state = tx.update(params, state, params)
        assert fo.averaged_params(state, params)["w"] is not params["w"]
        assert torch.equal(fo.averaged_params(state, params)["w"], params["w"])
    last = params
    for _ in range(2):
        params, state = tx.update(params, state, params)
        last = tree.map(lambda a, p: a + p, last, params)
    assert torch.equal(fo.averaged_params(state, params)["w"], (last["w"] - 0.9**3) / 2)


def test_reading_an_average():
    params = {"w": torch.ones(3, dtype=torch.bfloat16)}
    for link in (fo.average_params(0.9), fo.average_params(0.9, start="initial"), fo.swa_params()):
        tx = fo.chain(fo.adamw(fo.linear_schedule(0.1, 0.0, 9)), link)
        state = tx.init(params)
        assert torch.equal(fo.averaged_params(state, params)["w"], params["w"])
        _, state = tx.update(params, state, params)
        got = fo.averaged_params(state, params)["w"]
        assert got.dtype == torch.bfloat16
        torch.testing.assert_close(got.float(), tree.get(state, "average").mean["w"], rtol=0.01, atol=0.0)
    with pytest.raises(KeyError, match="no entry named 'average'"):
        fo.averaged_params(fo.adam().init(params), params)


def test_its_settings_can_be_swept():
    tx = fo.chain(fo.sgd(0.1), fo.swa_params(2, 3))
    params = torch.linspace(0.0, 1.0, 5, dtype=torch.float64)

    def average(start: torch.Tensor, every: torch.Tensor) -> torch.Tensor:
        at, state = params, tx.init(params)
        for _ in range(9):
            at, state = tx.update(at, state, at, {"swa_start": start, "swa_freq": every})
        return fo.averaged_params(state, at)

    starts, periods = torch.tensor([0.0, 2.0, 5.0]), torch.tensor([1.0, 3.0, 2.0])
    swept = torch.func.vmap(average)(starts, periods)
    for i in range(3):
        torch.testing.assert_close(swept[i], average(starts[i], periods[i]))
    after = lambda steps: sum(params * 0.9**t for t in steps) / len(steps)
    torch.testing.assert_close(swept[1], after([5, 8]))
    torch.testing.assert_close(swept[2], after([7, 9]))
