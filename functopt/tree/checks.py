"""Checks of trees: what they hold, and whether they fit the parameters."""

from __future__ import annotations

from typing import Any

import optree
import torch
from torch import Tensor

from functopt.tree.walk import Tree, path_name, prefix_problem

__all__ = ["check_params", "check_same"]


def check_same(tree: Tree, params: Tree, what: str, other: str = "params") -> None:
    """Check that ``tree`` has the structure, shapes, dtypes and devices of ``params``.

    Raises:
        ValueError: it does not; the message names ``what`` and the first path that differs. ``other`` is what it says
            of ``params``.
    """
    leaves, spec = optree.tree_flatten(tree)
    wanted, expected = optree.tree_flatten(params)
    if spec != expected:
        hint = _none_hint(tree, what)
        raise ValueError(f"{what}: the tree does not match {other}: {prefix_problem(tree, params, exact=True)}.{hint}")
    for i, (leaf, param) in enumerate(zip(leaves, wanted, strict=True)):
        if _facts_of(leaf) != _facts_of(param):
            path = path_name(optree.tree_paths(params)[i])
            raise ValueError(f"{what}: at {path!r} expected {_facts(param)}, got {_facts(leaf)}.")


def _none_hint(tree: Tree, what: str) -> str:
    paths, leaves, _ = optree.tree_flatten_with_path(tree, none_is_leaf=True)
    missing = [path_name(path) for path, leaf in zip(paths, leaves, strict=True) if leaf is None]
    if not missing:
        return ""
    return (
        f" The {what} at {missing[0]!r} is None: give zeros there, leave that parameter out of the trees, or use "
        "StatefulOptimizer, which skips parameters without a gradient."
    )


def _facts_of(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.dtype, tensor.device, tensor.layout


def _facts(tensor: Tensor) -> str:
    kind = "" if tensor.layout is torch.strided else "sparse "
    return f"{kind}{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)} on {tensor.device}"


def check_params(params: Tree, who: str, *, complex: bool = False) -> None:
    """Check that a tree can be optimized: not empty, every leaf a dense floating-point tensor.

    Args:
        params: the tree.
        who: who asks.
        complex: whether leaves may be complex.

    Raises:
        ValueError: the tree has no leaves.
        TypeError: a leaf is not a tensor, or is an integer, complex or sparse one; the message names its path.
    """
    leaves = optree.tree_leaves(params)
    if not leaves:
        raise ValueError(f"{who}: params has no leaves; give a tree with at least one tensor.")
    for i, leaf in enumerate(leaves):
        problem = ""
        if not isinstance(leaf, Tensor):
            problem = f"a {type(leaf).__name__}"
        elif not (leaf.is_floating_point() or (complex and leaf.is_complex())):
            problem = f"a {str(leaf.dtype).removeprefix('torch.')} tensor"
        elif leaf.layout is not torch.strided:
            problem = "a sparse tensor"
        if problem:
            path = path_name(optree.tree_paths(params)[i])
            hint = ""
            if isinstance(leaf, Tensor) and leaf.is_complex():
                hint = (
                    " Wrap the whole optimizer: split_real_and_imaginary(...) steps on both parts of complex tensors."
                )
            raise TypeError(f"{who}: the leaf at {path!r} is {problem}; expected a dense floating-point tensor.{hint}")
