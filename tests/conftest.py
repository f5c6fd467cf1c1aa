"""Shared set-up: one compile cache for all workers, one thread for each, and the parameters of the registry."""

import functools
import os
import tempfile
from pathlib import Path
from typing import Any

cache = Path(tempfile.gettempdir()) / "functopt-inductor-cache"
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache))

import pytest  # noqa: E402
import torch  # noqa: E402
from registry import make_grads, make_params  # noqa: E402

from functopt import direct  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture
def _graphs_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile to graphs of torch's own kernels, in a fraction of the time: where it is not the code that is tested."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    aot_eager = torch._dynamo.lookup_backend("aot_eager")
    monkeypatch.setattr(direct, "inductor", lambda graph, inputs, options: aot_eager(graph, inputs))


@pytest.fixture
def params() -> Any:
    """The parameters of the registry's problem."""
    return make_params()


@pytest.fixture
def grads() -> Any:
    """Their gradients at one step."""
    return make_grads(steps=1)[0]
