"""What the tests of error messages share."""

from __future__ import annotations

from typing import Any

import pytest

import functopt as fo


def words(error: pytest.ExceptionInfo[Any], *wanted: str) -> None:
    for word in wanted:
        assert word in str(error.value), f"{word!r} is not in: {error.value}"


def step(tx: fo.Transform, grads: Any, params: Any, hypers: Any = None, state: Any = None, **extras: Any) -> Any:
    return tx.update(grads, tx.init(params) if state is None else state, params, hypers, **extras)
