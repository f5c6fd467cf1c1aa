"""Shared set-up: one compile cache for all workers, one thread for each, and the parameters of the registry."""

import os
import tempfile
from pathlib import Path
from typing import Any

cache = Path(tempfile.gettempdir()) / "functopt-inductor-cache"
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache))

import pytest  # noqa: E402
import torch  # noqa: E402
from registry import make_grads, make_params  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture
def params() -> Any:
    """The parameters of the registry's problem."""
    return make_params()


@pytest.fixture
def grads() -> Any:
    """Their gradients at one step."""
    return make_grads(steps=1)[0]
