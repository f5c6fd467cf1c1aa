"""What the figures were taken on: the processor, its limits, and the versions."""

from __future__ import annotations

import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = [
    "functopt",
    "torch",
    "torchvision",
    "heavyball",
    "torchopt",
    "torch-optimi",
    "optax",
    "jax",
    "jaxlib",
    "numpy",
]


def describe() -> dict[str, Any]:
    """Return the machine and the versions of everything that is compared."""
    import torch

    return {
        "processor": _field("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "vector instructions": torch.backends.cpu.get_cpu_capability(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.system(),
        "python": platform.python_version(),
        "compiler": _compiler(),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
    }


def _field(path: str, name: str) -> str:
    try:
        found = re.search(rf"^{name}\s*:\s*(.+)$", Path(path).read_text(), re.MULTILINE)
    except OSError:
        return ""
    return found[1].strip() if found else ""


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _compiler() -> str:
    from torch._inductor import cpp_builder

    try:
        said = subprocess.run([cpp_builder.get_cpp_compiler(), "--version"], capture_output=True, text=True, check=True)
    except Exception:  # whatever torch raises when there is none
        return "none"
    return said.stdout.splitlines()[0]


def limits(repeats: int, quick: bool = False) -> dict[str, float]:
    """Measure what the processor can do: GFLOP/s of matrix products, GB/s of memory.

    Products: one large one, and 64 small ones of the sizes of the small network's first layer. Memory: ``c = a + b`` of
    tensors far larger than the caches, three transfers for each element (where a store needs no read of what it
    overwrites).
    """
    import torch

    n, entries = (64, 1 << 12) if quick else (1536, 1 << 25)
    a, b = torch.randn(n, n), torch.randn(n, n)
    x, w = torch.randn(64, 32, 64), torch.randn(64, 64, 32)
    product, small = torch.empty(n, n), torch.empty(64, 32, 32)
    u, v, total = torch.ones(entries), torch.ones(entries), torch.ones(entries)
    return {
        "gflops": 2e-9 * n**3 / _seconds(lambda: torch.mm(a, b, out=product), repeats),
        "gflops_small_products": 2e-9 * 64 * 32 * 64 * 32 / _seconds(lambda: torch.bmm(x, w, out=small), repeats, 50),
        "gbytes": 1e-9 * 3 * 4 * entries / _seconds(lambda: torch.add(u, v, out=total), repeats),
    }


def _seconds(run: Callable[[], Any], repeats: int, inner: int = 1) -> float:
    times = []
    for _ in range(repeats + 2):
        began = time.perf_counter()
        for _ in range(inner):
            run()
        times.append((time.perf_counter() - began) / inner)
    return statistics.median(times[2:])
