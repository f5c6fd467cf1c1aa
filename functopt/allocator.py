"""What the C allocator does with the memory that a step frees."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import platform
import threading
from collections.abc import Iterator

import torch

__all__ = ["keep_freed_memory", "keeping_all"]


@functools.cache
def keep_freed_memory() -> None:
    """Let the C allocator keep what a step frees for the next one.

    By default glibc gives blocks of some megabytes back to the system, which has to clear them again at the next step:
    nearly half the time of 64 members of a medium network. How much it keeps grows with the largest block that was ever
    freed (up to 32 MB), so one is, which nobody has touched.
    """
    torch.empty(30 << 20, dtype=torch.uint8, device="cpu")


# parameters of glibc's mallopt, and what they are by default once blocks of 32 MB have been freed
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_USUAL = {_TRIM_THRESHOLD: 64 << 20, _MMAP_MAX: 65536}
_KEEPING = {_TRIM_THRESHOLD: 2**31 - 1, _MMAP_MAX: 0}

_lock = threading.Lock()
_inside = 0


@contextlib.contextmanager
def keeping_all() -> Iterator[None]:
    """Meanwhile keep freed memory of any size, and give it back at the end; without glibc nothing changes.

    Blocks above 32 MB are otherwise mapped and cleared anew whenever they are needed: more than half the time of a step
    of 1,024 members of a medium network.
    """
    global _inside
    keep_freed_memory()
    libc = _glibc()
    with _lock:
        _inside += 1
        if libc is not None and _inside == 1:
            _set(libc, _KEEPING)
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if libc is not None and not _inside:
                _set(libc, _USUAL)
                libc.malloc_trim(0)


def _set(libc: ctypes.CDLL, values: dict[int, int]) -> None:
    for parameter, value in values.items():
        libc.mallopt(parameter, value)


@functools.cache
def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
