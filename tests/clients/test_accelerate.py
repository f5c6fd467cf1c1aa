"""Hugging Face Accelerate: prepare, gradient accumulation, clipping, save_state and load_state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from client import OURS, THEIRS, Make, close, data, load, net, weights
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader

import functopt as fo
from functopt import StatefulOptimizer


@pytest.fixture(scope="module")
def accelerate() -> Any:
    return load("accelerate", "accelerate")[0]


@pytest.fixture(autouse=True)
def _forget(accelerate: Any) -> Any:
    """Accelerators of a process share their state."""
    yield
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()


def train(
    accelerate: Any, make: Make, *, seed: int = 0, save: Path | None = None, resume: Path | None = None
) -> tuple[Any, list[float]]:
    """Train for four epochs, or the last two of them; return the model and its losses."""
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = net(seed)
    optimizer = make([{"params": model[0].parameters()}, {"params": model[1:].parameters(), "lr": 0.05}])
    scheduler = OneCycleLR(optimizer, [0.02, 0.05], total_steps=25)  # Accelerate counts every batch
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, DataLoader(data(), 16), scheduler)
    if resume:
        accelerator.load_state(resume)
    losses = []
    for epoch in range(2 if resume else 0, 4):
        if save and epoch == 2:
            accelerator.save_state(save)
        for x, y in loader:
            with accelerator.accumulate(model):
                loss = cross_entropy(model(x), y)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 0.5)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            losses.append(loss.item())
    return accelerator.unwrap_model(model), losses


def test_losses_are_those_of_adamw(accelerate):
    (ours, our_losses), (theirs, their_losses) = (train(accelerate, make) for make in (OURS, THEIRS))
    assert len(our_losses) == 24
    close(our_losses, their_losses)
    close(weights(ours), weights(theirs), "weights")


def test_parameters_of_a_compiled_optimizer_are_saved(accelerate, tmp_path):
    """They lie in one buffer, and are not taken for one shared weight."""
    model = net()
    before = weights(model)
    accelerator = accelerate.Accelerator(cpu=True)
    optimizer = StatefulOptimizer(model.parameters(), fo.adamw(), compile=True)
    model, optimizer = accelerator.prepare(model, optimizer)
    accelerator.save_state(tmp_path / "state")
    with torch.no_grad():
        for param in model.parameters():
            param.zero_()
    accelerator.load_state(tmp_path / "state")
    assert torch.equal(weights(model), before)


def test_training_resumes_from_a_saved_state(accelerate, tmp_path):
    unbroken, losses = train(accelerate, OURS, save=tmp_path / "state")
    resumed, losses_after = train(accelerate, OURS, seed=1, resume=tmp_path / "state")
    assert losses_after == losses[12:]
    assert torch.equal(weights(resumed), weights(unbroken))
