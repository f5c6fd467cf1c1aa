"""Hugging Face Accelerate with a functional optimizer: ``prepare`` takes it, and its scheduler, like any other.

Run it with ``python examples/accelerate_client.py`` (``pip install accelerate``).
"""

from __future__ import annotations

from statistics import fmean

import digits
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, TensorDataset

import functopt as fo


def main(epochs: int = 12, peak_lr: float = 1e-2) -> float:
    """Train and return the accuracy on the test images."""
    set_seed(0)
    accelerator = Accelerator(cpu=True)
    data = digits.load()
    batches = DataLoader(TensorDataset(*data.train), 64, shuffle=True, drop_last=True)
    model = digits.conv_net()

    no_bias = {name: not name.endswith("bias") for name, _ in model.named_parameters()}
    tx = fo.adamw(weight_decay=0.05, mask=no_bias)
    optimizer = fo.StatefulOptimizer(model.named_parameters(), tx, lr=peak_lr)
    scheduler = OneCycleLR(optimizer, peak_lr, total_steps=epochs * len(batches))
    model, optimizer, batches, scheduler = accelerator.prepare(model, optimizer, batches, scheduler)

    for epoch in range(epochs):
        losses = []
        for images, labels in batches:
            optimizer.zero_grad()
            loss = cross_entropy(model(images), labels)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            losses.append(loss.item())
        print(f"epoch {epoch + 1:2d}: loss {fmean(losses):.4f}")

    with torch.no_grad():
        accuracy = digits.accuracy(model(data.test.images), data.test.labels)
    print(f"test accuracy {accuracy:.2%}")
    return accuracy


if __name__ == "__main__":
    main()
