"""CATALOG.md is what make_catalog.py makes of the code, and leaves out nothing that others have."""

from __future__ import annotations

import inspect
import re

import pytest
import torch
from elsewhere import OPTAX, OPTAX_LOSSES, TORCH_OPTIM
from make_catalog import FILE, catalog, papers, public
from torch.optim import lr_scheduler, swa_utils

import functopt as fo
from functopt import projections, tree


def test_the_page_is_current():
    assert FILE.read_text() == catalog(), "run python tests/make_catalog.py"


@pytest.mark.parametrize("name", public("recipes"))
def test_every_recipe_cites_its_paper(name: str):
    assert papers(public("recipes")[name])


def test_all_of_torch_is_spoken_of():
    names = {*torch.optim.__all__, *lr_scheduler.__all__, *swa_utils.__all__}
    assert names - {"lr_scheduler", "swa_utils"} == {*TORCH_OPTIM}


def test_names_that_are_given_for_theirs_exist():
    for text in (*OPTAX.values(), *TORCH_OPTIM.values()):
        for name in re.findall(r"`(\w+(?:\.\w+)*)[`(]", text):
            if not name.startswith(("torch.", "scipy.", "transform", "update", "x.", "__")):
                assert eval(f"fo.{name}", {"fo": fo})


def test_all_of_optax_is_here():
    optax = pytest.importorskip("optax")
    modules = (optax, optax.transforms, optax.contrib, optax.schedules, optax.projections)
    functions = {name for m in modules for name, thing in vars(m).items() if inspect.isfunction(thing)}
    functions = {name for name in functions if not name.startswith(("_", "tree_")) or name == "tree_map_params"}
    ours = {*vars(fo), *vars(projections)}
    assert functions - ours - {*OPTAX} - OPTAX_LOSSES == set()
    in_tree = {name for name, thing in vars(optax.tree).items() if inspect.isfunction(thing)}
    assert {f"tree.{name}" for name in in_tree if not hasattr(tree, name)} <= {*OPTAX}
