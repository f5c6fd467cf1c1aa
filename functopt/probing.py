"""Learn quickly which vector instructions torch can compile for, at the first compilation for the CPU."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable

__all__ = ["probe_vector_instructions"]

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


@functools.cache
def probe_vector_instructions() -> None:
    """Let torch try out the C++ compiler in the background and with less to compile, while it traces the function.

    Before its first kernel for the CPU torch builds a program for each kind of vector instructions that the processor
    has, to learn which work. Each includes much of torch's headers, which takes 3 s: more than half of a cold start
    (once for a cache folder). Here a few lines are built for the best kind, which has the others in it; only if that
    fails are torch's programs built. In another version of torch, where these functions are not at their place, torch
    does as it would.
    """
    with contextlib.suppress(ImportError, AttributeError):
        # what the thread needs is imported here: importing in two threads at once can fail
        from torch._inductor import codecache, cpp_builder, cpu_vec_isa  # noqa: F401

        has, long = cpu_vec_isa.x86_isa_checker(), cpu_vec_isa.VecISA._avx_code
        kinds = [kind for kind in cpu_vec_isa.supported_vec_isa_list if {*str(kind).split()} <= {*has}]
        short = functools.cache(functools.partial(kinds[0].check_build, _SHORT) if kinds else bool)
        for kind in kinds:
            kind.check_build = functools.partial(_check_build, kind.check_build, long, short)
        threading.Thread(target=cpu_vec_isa.valid_vec_isa_list, daemon=True).start()


def _check_build(check: Callable[[str], bool], long: str, short: Callable[[], bool], code: str) -> bool:
    return (code == long and short()) or check(code)
