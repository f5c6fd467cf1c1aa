"""Shared set-up: one compile cache for all tests and workers, and two threads at most."""

import os
import tempfile
from pathlib import Path

cache = Path(tempfile.gettempdir()) / "functopt-inductor-cache"
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache))

import torch  # noqa: E402

torch.set_num_threads(1)
