"""What the tests of the clients share: a small problem, the two optimizers, and a way to do without a client."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from importlib import import_module, metadata
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import functopt as fo
from functopt import StatefulOptimizer

# In float64 the equations of the two sides differ by the order of their operations only, about 1e-16 in a step.
RTOL = 1e-12

Make = Callable[[Iterable[Any]], torch.optim.Optimizer]

# debias="power" is how torch debiases, which matters where a scheduler moves beta1
OURS: Make = lambda params: StatefulOptimizer(params, fo.adamw(0.02, weight_decay=0.1, debias="power"))
THEIRS: Make = lambda params: torch.optim.AdamW(params, 0.02, weight_decay=0.1)


def load(client: str, *modules: str) -> list[ModuleType]:
    """Import modules of a client. If that fails the test is skipped, with the client's name and the reason."""
    try:
        with warnings.catch_warnings():
            # a client may import what is deprecated; everything it does later has to be free of warnings
            for category in (DeprecationWarning, FutureWarning):
                warnings.simplefilter("ignore", category)
            return [import_module(module) for module in modules]
    except Exception as error:
        pytest.skip(f"{client} {version(client)} with torch {torch.__version__}: {type(error).__name__}: {error}")


def version(client: str) -> str:
    """Return the version of what is installed."""
    try:
        return metadata.version(client)
    except metadata.PackageNotFoundError:
        return "(not installed)"


def net(seed: int = 0) -> Any:
    """Return a network with normalisation in it, drawn by ``seed``, in float64."""
    # no bias in front of the normalisation: its gradient would be nothing but rounding, which Adam scales up
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3)).double()


def data(count: int = 96, seed: int = 0) -> TensorDataset:
    """Return vectors and their classes."""
    x = torch.randn(count, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return TensorDataset(x, (x[:, :3].sum(1) > 0).long() + (x[:, 0] > 0).long())


def close(ours: Any, theirs: Any, what: str = "losses") -> None:
    """Assert that two runs agree up to rounding."""
    ours, theirs = (torch.as_tensor(run, dtype=torch.float64) for run in (ours, theirs))
    torch.testing.assert_close(ours, theirs, rtol=RTOL, atol=0, msg=lambda m: f"{what}: {m}")


def weights(model: nn.Module) -> Tensor:
    """Return everything that a model has, in one vector."""
    return torch.cat([t.detach().flatten().double() for t in model.state_dict().values()])
