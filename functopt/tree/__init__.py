"""Pytrees: what optree lacks.

Every tree here is an `optree <https://optree.readthedocs.io>`_ tree: nested dicts, tuples, lists and named tuples with
tensors (or numbers) at the leaves. A *path* is the dotted names that lead to a leaf, such as ``"head.weight"``.
"""

from functopt.tree.arithmetic import (
    is_expanded,
    means,
    member,
    norm,
    owned,
    replicate,
    scalars,
    size,
    stack,
    sums,
    zeros_like,
)
from functopt.tree.checks import check_params, check_same
from functopt.tree.entries import get, set
from functopt.tree.layout import Layout, by_shape, pack, ravel, unpack
from functopt.tree.walk import (
    Tree,
    children,
    describe,
    is_schedule,
    layout_of,
    leaves,
    leaves_with_paths,
    map,
    path_name,
    prefix_problem,
    rebuild,
    trim,
)

__all__ = [
    "Layout",
    "Tree",
    "by_shape",
    "check_params",
    "check_same",
    "children",
    "describe",
    "get",
    "is_expanded",
    "is_schedule",
    "layout_of",
    "leaves",
    "leaves_with_paths",
    "map",
    "means",
    "member",
    "norm",
    "owned",
    "pack",
    "path_name",
    "prefix_problem",
    "ravel",
    "rebuild",
    "replicate",
    "scalars",
    "set",
    "size",
    "stack",
    "sums",
    "trim",
    "unpack",
    "zeros_like",
]
