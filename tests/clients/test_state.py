"""What clients do with the state of an optimizer besides saving it. Needs none of them."""

from __future__ import annotations

import pytest
import torch
from client import OURS, THEIRS, net

import functopt as fo
from functopt import StatefulOptimizer


@pytest.mark.parametrize("make", [OURS, THEIRS], ids=["ours", "torch"])
def test_the_state_of_an_unknown_parameter_is_empty(make):
    """fastai marks every bias of a model, also those that it does not train."""
    optimizer = make(net().parameters())
    assert optimizer.state[net()[3].bias] == {}


def test_what_is_assigned_to_the_state_is_copied():
    """Lightning moves a state to a device by assigning its tensors."""
    model = net()
    optimizer = OURS(model.parameters())
    state, new = optimizer.state[model[3].bias], torch.ones(3)
    for name, tensor in state.items():
        state[name] = tensor.to("cpu")
    state["mu.total"] = new
    new.zero_()
    assert optimizer.state[model[3].bias]["mu.total"].tolist() == [1.0, 1.0, 1.0]
    assert not optimizer.state[model[3].weight]["mu.total"].any()


def test_compiled_every_parameter_has_a_storage_of_its_own(tmp_path):
    """Though all lie in one buffer: safetensors and Accelerate take tensors of one storage for one shared weight."""
    model = net()
    StatefulOptimizer(model.parameters(), fo.adamw(), compile=True)
    sizes = [p.numel() * p.itemsize for p in model.parameters()]
    offsets = [p.data_ptr() - model[0].weight.data_ptr() for p in model.parameters()]
    assert max(offsets) < sum(sizes)
    assert [p.untyped_storage().nbytes() for p in model.parameters()] == sizes
    torch.save(model[3].bias, tmp_path / "bias")
    assert torch.load(tmp_path / "bias").untyped_storage().nbytes() == sizes[-1]


@pytest.mark.parametrize(
    ("name", "value"), [("mu.total", torch.ones(1)), ("mu.total", 1.0), ("exp_avg", torch.ones(3))]
)
def test_what_does_not_fit_is_refused(name, value):
    model = net()
    optimizer = OURS(model.parameters())
    with pytest.raises(KeyError, match=f"'{name}' cannot be set"):
        optimizer.state[model[3].bias][name] = value
    assert not any(tensor.any() for tensor in optimizer.state[model[3].bias].values())
