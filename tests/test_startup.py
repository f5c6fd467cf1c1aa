"""What shortens the start of the compiler leaves torch with what it would have found itself."""

import functools
import gc
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from functopt import startup
from functopt.startup import start_compiler

codecache: Any = pytest.importorskip("torch._inductor.codecache")
cpu_vec_isa: Any = pytest.importorskip("torch._inductor.cpu_vec_isa")


@pytest.mark.parametrize(
    ("code", "works", "torch_says", "answer", "asked"),
    [
        ("long", True, False, True, []),
        ("long", False, False, False, ["long"]),
        ("long", False, True, True, ["long"]),
        ("other", True, False, False, ["other"]),
        ("other", False, True, True, ["other"]),
    ],
)
def test_torch_is_asked_only_what_is_not_known(
    code: str, works: bool, torch_says: bool, answer: bool, asked: list[str]
):
    codes: list[str] = []

    def check(code: str) -> bool:
        codes.append(code)
        return torch_says

    assert startup._check_build(check, "long", lambda: works, code) is answer
    assert codes == asked


def test_the_best_kind_is_the_one_that_torch_finds():
    start_compiler()
    kinds = cpu_vec_isa.valid_vec_isa_list()
    has = cpu_vec_isa.x86_isa_checker()
    if not has:
        pytest.skip("not an x86 processor")
    listed = [kind for kind in cpu_vec_isa.supported_vec_isa_list if {*str(kind).split()} <= {*has}]
    assert kinds == listed  # the compiler of whoever runs the tests knows what the processor has
    assert isinstance(listed[0].check_build, functools.partial)
    assert cpu_vec_isa.VecISA.check_build(kinds[0], cpu_vec_isa.VecISA._avx_code)  # torch's own program


def test_instructions_that_do_not_exist_are_found_out():
    kind = cpu_vec_isa.VecAVX2()
    kind._arch_flags = "-mavx2 -mno-such-instructions"
    assert not kind.check_build(startup._SHORT)


def test_functions_that_torch_does_not_have_are_found_out():
    if not torch.cpu._is_avx2_supported():
        pytest.skip("not a processor with AVX2")
    assert cpu_vec_isa.VecAVX2().check_build(startup._SHORT)
    assert not cpu_vec_isa.VecAVX2().check_build(startup._SHORT.replace("Sleef_expf8_u10", "Sleef_of_none"))


def test_a_torch_without_these_functions_is_left_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(cpu_vec_isa, "supported_vec_isa_list")
    start_compiler.__wrapped__()


def test_the_thread_imports_nothing(tmp_path: Path):
    # setuptools, which torch imports for its C++ compiler, takes finders out of the list that other imports go through
    code = """
import sys, threading
from functopt.startup import start_compiler

class Later:
    def __init__(self, target, daemon):
        self.start = lambda: later.append(target)

later, Thread, threading.Thread = [], threading.Thread, Later
start_compiler()
threading.Thread = Thread
modules = {*sys.modules}
later.pop()()
assert {*sys.modules} == modules, {*sys.modules} - modules
"""
    folder = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, **folder})


def test_the_header_is_compiled_for_the_third_kernel(monkeypatch: pytest.MonkeyPatch):
    kernels = codecache.CppPythonBindingsCodeCache
    header = codecache._get_cpp_prefix_header("cpu")
    monkeypatch.setattr(kernels, "_get_uncompiled_header", lambda device: codecache._get_cpp_prefix_header(device))
    startup._delay_header()
    assert [kernels._get_uncompiled_header("cpu") for _ in range(4)] == [None, None, header, header]


def test_a_compiled_header_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(codecache, "_HEADER_DIR", str(tmp_path / "none"))
    assert not startup._header_is_there()
    monkeypatch.setattr(codecache, "_HEADER_DIR", str(tmp_path))
    (tmp_path / "header.h").touch()
    assert not startup._header_is_there()
    (tmp_path / "header.h.gch").touch()
    assert startup._header_is_there()


@pytest.mark.parametrize("name", ["adamw", "lamb"])
def test_a_start_without_any_cache_gives_the_same_step(tmp_path: Path, name: str):
    code = f"""
import torch, functopt as fo
params = {{"w": torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, 4)}}
grads = {{"w": params["w"].cos()}}
tx = fo.{name}(lr=0.1)
expected, _ = tx.update(grads, tx.init(params), params)
got, _ = fo.compile(tx.update)(grads, tx.init(params), params)
torch.testing.assert_close(got, expected, rtol=1e-14, atol=1e-14)
from torch._inductor import codecache
from pathlib import Path
assert codecache._HEADER_DIR.startswith({str(tmp_path)!r}) and not Path(codecache._HEADER_DIR).exists()
"""
    folders = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"), "TMPDIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, **folders})


def test_collecting_garbage_goes_on_after_the_imports():
    for collects in (True, False):
        (gc.enable if collects else gc.disable)()
        try:
            startup._import_compiler()
            assert gc.isenabled() is collects
        finally:
            gc.enable()
