"""The short probe of vector instructions finds what torch's own finds."""

import functools

import pytest
import torch

from functopt import probing
from functopt.probing import probe_vector_instructions

cpu_vec_isa = pytest.importorskip("torch._inductor.cpu_vec_isa")


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

    assert probing._check_build(check, "long", lambda: works, code) is answer
    assert codes == asked


def test_the_best_kind_is_the_one_that_torch_finds():
    probe_vector_instructions()
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
    assert not kind.check_build(probing._SHORT)


def test_functions_that_torch_does_not_have_are_found_out():
    if not torch.cpu._is_avx2_supported():
        pytest.skip("not a processor with AVX2")
    assert cpu_vec_isa.VecAVX2().check_build(probing._SHORT)
    assert not cpu_vec_isa.VecAVX2().check_build(probing._SHORT.replace("Sleef_expf8_u10", "Sleef_of_none"))


def test_a_torch_without_these_functions_is_left_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(cpu_vec_isa, "supported_vec_isa_list")
    probe_vector_instructions.__wrapped__()
