"""The examples in docstrings run, and everything public has one."""

from __future__ import annotations

import doctest
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import functopt as fo
from functopt import tree

HOMES = ("functopt.transforms", "functopt.optimizers", "functopt.wrappers", "functopt.combine", "functopt.schedules")


def is_ours(thing: Any) -> bool:
    return callable(thing) and getattr(thing, "__module__", "").startswith("functopt")


PUBLIC = {name: thing for name, thing in vars(fo).items() if not name.startswith("_") and is_ours(thing)}
CATALOG = [name for name, thing in PUBLIC.items() if thing.__module__.startswith(HOMES)]


def names(folder: Path = Path()) -> dict[str, Any]:
    """What the examples know beside everything public: parameters, their gradients, a loss, a model and a folder."""
    params = {"w": torch.tensor([1.0, -2.0])}
    grads = {"w": torch.tensor([0.5, 1.0])}
    loss = lambda p: (p["w"] ** 2).sum()
    own = {"params": params, "grads": grads, "loss": loss, "model": nn.Linear(2, 1), "nn": nn, "folder": folder}
    return {**PUBLIC, "fo": fo, "torch": torch, "tree": tree, **own}


@pytest.mark.parametrize("name", PUBLIC)
def test_examples(name: str, tmp_path: Path):
    document = inspect.getdoc(PUBLIC[name]) or ""
    example = doctest.DocTestParser().get_doctest(document, names(tmp_path), name, None, None)
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    torch.manual_seed(0)
    result = runner.run(example, out=said.append, clear_globs=False)
    assert result.failed == 0, "".join(said)


@pytest.mark.parametrize("name", CATALOG)
def test_everything_has_an_example(name: str):
    assert ">>>" in (inspect.getdoc(PUBLIC[name]) or "")
