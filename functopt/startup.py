"""Let torch's compiler start quickly: what it does once in a process, shortened or done while it traces."""

from __future__ import annotations

import contextlib
import functools
import gc
import itertools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

__all__ = ["start_compiler"]

_SHORT = """
#include <immintrin.h>
alignas(64) float values[16];
#if defined(CPU_CAPABILITY_AVX512)
extern "C" __m512 Sleef_expf16_u10(__m512);
extern "C" void probe512() { _mm512_store_ps(values, Sleef_expf16_u10(_mm512_load_ps(values))); }
#endif
extern "C" __m256 Sleef_expf8_u10(__m256);
extern "C" void probe256() { _mm256_store_ps(values, Sleef_expf8_u10(_mm256_load_ps(values))); }
"""
"""What torch's own probe learns: that the compiler knows the instructions, and torch's library the functions."""

_WITHOUT_HEADER = 2
"""Kernels that are compiled before the header is, which pays from the third on."""

_UNUSED = 'extern "C" void kernel(float*) {}'


@functools.cache
def start_compiler() -> None:
    """Let torch prepare for its first kernel for the CPU in the background and with less to do, while it traces.

    - To learn which vector instructions work, torch builds a program for each kind that the processor has (once for a
      cache folder). Each includes much of torch's headers, which takes 3 s: more than half of a cold start. Here a few
      lines are built for the best kind, which has the others in it; only if that fails are torch's programs built.
    - The header of all kernels is compiled with the third kernel, unless that was done before: it takes 6 s, and saves
      a kernel 2.5 s. If it is there, whether it has changed is looked at before it is asked for.
    - Its modules are imported without looking for garbage among the many objects that they make.
    - Where there is no GPU, Triton's library of 500 MB is not read to learn its version, which torch would not use.

    In another version of torch, where these functions are not at their place, torch does as it would.
    """
    with contextlib.suppress(ImportError, AttributeError):
        _import_compiler()
        # All that the thread needs is imported here. Importing in two threads at once can fail: setuptools changes the
        # list of finders, and an import that goes through this list in another thread then misses one.
        from torch._inductor import codecache, cpp_builder, cpu_vec_isa  # noqa: F401
        from torch.utils import _filelock, cpp_extension  # noqa: F401

        _shorten_probe()
        header = _header_is_there()
        if not header:
            _delay_header()

        def prepare() -> None:
            with contextlib.suppress(Exception):  # without a C++ compiler torch says so itself, when it needs one
                cpu_vec_isa.valid_vec_isa_list()
                if header:  # of a kernel that is not built, as nothing is done with what is submitted
                    codecache.CppPythonBindingsCodeCache.load_pybinding_async(["float*"], _UNUSED, submit_fn=bool)

        threading.Thread(target=prepare, daemon=True).start()
        _skip_triton()


def _import_compiler() -> None:
    collects = gc.isenabled()
    gc.disable()
    try:
        import torch._dynamo
        import torch._inductor.compile_fx  # noqa: F401
    finally:
        if collects:
            gc.enable()


def _header_is_there() -> bool:
    from torch._inductor import codecache

    return any(Path(codecache._HEADER_DIR).glob("*.?ch"))


def _delay_header() -> None:
    from torch._inductor import codecache

    kernels: Any = codecache.CppPythonBindingsCodeCache
    usual, numbers = kernels._get_uncompiled_header, itertools.count()
    kernels._get_uncompiled_header = lambda device: usual(device) if next(numbers) >= _WITHOUT_HEADER else None


def _skip_triton() -> None:
    from torch._inductor import codecache

    if not torch.cuda.is_available():
        key: Any = codecache.triton_key
        with contextlib.suppress(RuntimeError):  # it is known already
            key.set("")


def _shorten_probe() -> None:
    from torch._inductor import cpu_vec_isa

    has, long = cpu_vec_isa.x86_isa_checker(), cpu_vec_isa.VecISA._avx_code
    kinds = [kind for kind in cpu_vec_isa.supported_vec_isa_list if {*str(kind).split()} <= {*has}]
    short = functools.cache(functools.partial(kinds[0].check_build, _SHORT) if kinds else bool)
    for kind in kinds:
        kind.check_build = functools.partial(_check_build, kind.check_build, long, short)


def _check_build(check: Callable[[str], bool], long: str, short: Callable[[], bool], code: str) -> bool:
    return (code == long and short()) or check(code)
