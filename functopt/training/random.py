"""The state of all random number generators that training draws from."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

__all__ = ["generators_of", "random_state", "set_random_state"]


def random_state() -> dict[str, Any]:
    """Return the state of the global generators of Python, numpy and torch (of the CPU, and of CUDA if in use).

    It is made of tensors, numbers, strings and lists, so that ``torch.load(weights_only=True)`` reads it.
    """
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    state: dict[str, Any] = {
        "python": [version, list(words), gauss],
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Set the generators to what :func:`random_state` returned."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def generators_of(*data: Any) -> list[torch.Generator]:
    """Return the generators of their own that data loaders and their samplers draw from, each once."""
    found: dict[int, torch.Generator] = {}
    for loader in data:
        batch_sampler = getattr(loader, "batch_sampler", None)
        for owner in (loader, getattr(loader, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None)):
            generator = getattr(owner, "generator", None)
            if isinstance(generator, torch.Generator):
                found[id(generator)] = generator
    return list(found.values())
