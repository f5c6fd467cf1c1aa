"""The allocator's settings: changed while something runs, and as they were afterwards."""

from __future__ import annotations

import pytest

from functopt import allocator


class Libc:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.set: dict[int, int] = {}
        self.trimmed = 0

    def mallopt(self, parameter: int, value: int) -> None:
        self.set[parameter] = value

    def malloc_trim(self, pad: int) -> None:
        self.trimmed += 1


@pytest.fixture
def libc(monkeypatch: pytest.MonkeyPatch) -> Libc:
    libc = Libc()
    monkeypatch.setattr(allocator, "_glibc", lambda: libc)
    return libc


def test_memory_is_kept_inside_and_given_back_at_the_end(libc: Libc):
    with allocator.keeping_all():
        assert libc.set == allocator._KEEPING
        with allocator.keeping_all():  # a sweep in a callback of another one
            pass
        assert libc.set == allocator._KEEPING
        assert not libc.trimmed
    assert libc.set == allocator._USUAL
    assert libc.trimmed == 1


def test_also_after_an_error(libc: Libc):
    with pytest.raises(ValueError, match="wrong"), allocator.keeping_all():
        raise ValueError("wrong")
    assert libc.set == allocator._USUAL


def test_without_glibc_nothing_is_changed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(allocator, "_glibc", lambda: None)
    with allocator.keeping_all():
        pass
