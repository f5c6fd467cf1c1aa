"""Compile a pure function so that it runs in its arguments' memory."""

from __future__ import annotations

import functools
import itertools
import types
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import optree
import torch
from torch import Tensor

from functopt import tree
from functopt.allocator import keep_freed_memory
from functopt.direct import Direct
from functopt.numerics import accumulator_dtype
from functopt.startup import start_compiler

__all__ = ["compile"]

_serial = itertools.count()

RECOMPUTE = {
    "realize_opcount_threshold": 1000,
    "realize_reads_threshold": 100,
    "realize_acc_reads_threshold": 1000,
}
"""Inductor options for an update of packed trees: it is computed again where it is used again, not kept in memory.

LAMB, which uses its update for a norm and for the step, takes half the time. The last option lets a kernel read more
than 12 tensors, which clipping, AdamW and an average with bookkeeping for each parameter do. Leaf by leaf an update
may also be summed by rows and columns: Adafactor would take twice the time.
"""


def compile(fn: Callable[..., Any], *, donate: Sequence[int] = (), **options: Any) -> Callable[..., Any]:
    """Compile a pure function; what it returns takes the place of donated arguments, in their memory.

    ``torch.compile`` of a function that returns new parameters and state writes them to fresh memory at every step.
    With ``donate`` the outputs are written into the arguments instead, as JAX's buffer donation does, so that purity
    costs nothing: the arguments hold the new values afterwards, and the old ones are gone.

    Python numbers in the arguments are handed over as 0-d tensors, so that no change of a value recompiles; what
    decides about the program (a bool, a string, a shape) belongs into ``fn`` or is a bool or string.

    A function of packed trees without products of matrices, as most updates are, keeps nothing between its parts in
    memory that can be computed again. Else torch decides, as it does if you give ``mode`` or ``options``.

    Args:
        fn: a pure function of positional arguments. With ``donate=(i, j)`` it returns a tuple whose first item has the
            structure, shapes and dtypes of argument ``i`` and whose second has those of argument ``j``.
        donate: positions of the arguments whose memory the first outputs take, in the order of the outputs.
        **options: for ``torch.compile``; the whole function is one graph unless ``fullgraph=False``.

    Returns:
        A function of the same arguments that returns the donated arguments, updated, and the other outputs.

    Raises:
        ValueError: a donated tensor appears twice or does not own all its memory (an expanded view), or an output does
            not have the structure, shapes, dtypes and devices of the argument in whose place it goes; the message names
            the path. Nothing is overwritten then.

    >>> tx = sgd(lr=0.1)
    >>> step = compile(lambda params, state, grads: tx.update(grads, state, params), donate=(0, 1), backend="eager")
    >>> new_params, state = step(params, tx.init(params), grads)
    >>> new_params["w"] is params["w"]
    True
    """

    def run(*args: Any) -> Any:
        # views of the donated arguments, so that what comes out of them unchanged is known as a view
        outputs = fn(*(tree.map(lambda t: t.view(t.shape), a) if i in donate else a for i, a in enumerate(args)))
        # found out while tracing, but said by the caller: an exception in a traced function does not arrive as it is
        if not _fit(outputs, args, donate):
            return False, outputs
        settled = [tree.map(_moved, outputs[number]) for number in range(len(donate))]
        for position, new in zip(donate, settled, strict=True):
            tree.map(lambda old, value: old.copy_(value), args[position], new)
        return True, (outputs[len(donate) :] if donate else outputs)

    # A code object and name of its own. Torch keeps compiled graphs by code object, and gives up after eight for one.
    # By name it remembers which floats have changed, such as a default of the optimizer in two calls of compile, and
    # makes them symbols, which vmap cannot lower (torch 2.14: "x must be Tensor or scalar, got SymFloat").
    code = run.__code__.replace(co_name=f"{getattr(fn, '__name__', 'fn')}_{next(_serial)}")
    own = types.FunctionType(code, run.__globals__, code.co_name, run.__defaults__, run.__closure__)
    backend = options.get("backend", "inductor")
    on_inductor = backend == "inductor" or isinstance(backend, Direct)
    options = {"fullgraph": True, **options}
    by_arguments = on_inductor and not {"mode", "options"} & options.keys()
    compiled = None if by_arguments else torch.compile(own, **options)

    @functools.wraps(fn)
    def step(*args: Any) -> Any:
        nonlocal compiled
        if on_inductor:
            start_compiler()
            keep_freed_memory()
        if compiled is None:
            compiled = torch.compile(own, options=_recompute_updates() if _has_packed(args) else None, **options)
        donated = _donated(args, donate)
        fit, rest = compiled(*_numbers_to_tensors(args))
        if not fit:
            raise ValueError(_why_no_fit(rest, args, donate))
        return (*donated, *rest) if donate else rest

    return step


@functools.cache
def _recompute_updates() -> dict[str, Any]:
    """Return inductor options which become ``RECOMPUTE`` if there is no product of matrices in the graph."""
    from torch._inductor import config, custom_graph_pass

    class Choose(custom_graph_pass.CustomGraphPass):
        def __call__(self, graph: torch.fx.Graph) -> None:
            if not any(node.target in _PRODUCTS for node in graph.nodes):
                for name, value in RECOMPUTE.items():  # what they were is put back after this compilation
                    setattr(config, name, value)

        def uuid(self) -> Any:
            return custom_graph_pass.get_hash_for_files((__file__,))

    return {**{name: getattr(config, name) for name in RECOMPUTE}, "post_grad_custom_pre_pass": Choose()}


def _has_packed(args: Any) -> bool:
    return tree.layout_of(args) is not None or any(_has_packed(part) for _, part in tree.children(args))


_PRODUCTS = {
    getattr(torch.ops.aten, name).default
    for name in ("mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward")
}


def _donated(args: Sequence[Any], positions: Sequence[int]) -> list[Any]:
    """Return the donated arguments, once it is clear that each of their tensors can be written to by itself."""
    if positions and max(positions) >= len(args):
        raise ValueError(f"compile: argument {max(positions)} is donated, but the call has {len(args)} arguments")
    donated = [args[position] for position in positions]
    leaves = tree.leaves(donated)
    # at every step, so first what is quick and nearly always enough
    if (
        not all(isinstance(leaf, Tensor) for leaf in leaves)
        or len({leaf.data_ptr() for leaf in leaves}) < len(leaves)
        or any(0 in leaf.stride() for leaf in leaves)
    ):
        problem = _why_not_donated(args, positions)
        if problem:
            raise ValueError(problem)
    return donated


def _why_not_donated(args: Sequence[Any], positions: Sequence[int]) -> str:
    """Say which tensor cannot be written to by itself; empty if all can."""
    seen: dict[int, str] = {}
    for position in positions:
        for path, leaf in tree.leaves_with_paths(args[position]):
            place = f"argument {position} at {path!r}"
            if not isinstance(leaf, Tensor):
                return f"compile: {place} is donated but is a {type(leaf).__name__}, not a tensor"
            if tree.is_expanded(leaf):
                return f"compile: {place} is an expanded view; donate a tensor that owns its memory (clone it)"
            if leaf.numel() and seen.setdefault(leaf.data_ptr(), place) != place:
                return f"compile: {place} is the same memory as {seen[leaf.data_ptr()]}; donate it once"
    return ""


def _moved(leaf: Tensor) -> Tensor:
    """Return the new value of a leaf: a copy, if it is an argument as it came or a part of one.

    An entry may move to another place, as in a history of gradients, and then has to be read before that place is
    written. A plain ``clone`` would not do: the compiler takes it out without looking at what is written (torch 2.14).
    """
    return leaf if leaf._base is None else torch.where(leaf == leaf, leaf, leaf)


def _fit(outputs: Any, args: Sequence[Any], positions: Sequence[int]) -> bool:
    """Tell whether the outputs can go into the memory of the donated arguments."""
    if positions and not (isinstance(outputs, (tuple, list)) and len(outputs) >= len(positions)):
        return False
    return all(_is_like(new, args[position]) for new, position in zip(outputs, positions, strict=False))


def _is_like(new: Any, old: Any) -> bool:
    """Tell whether two trees have the same structure, shapes, dtypes and devices.

    Not by optree, which inside ``torch.compile`` takes as long to trace as the rest of a step.
    """
    if isinstance(old, Tensor):
        tensor = isinstance(new, Tensor)
        return tensor and new.shape == old.shape and new.dtype == old.dtype and new.device == old.device
    if type(new) is not type(old):
        return False
    if not isinstance(old, (dict, tuple, list)) and optree.tree_structure(new) != optree.tree_structure(old):
        return False
    parts, wanted = tree.children(new), tree.children(old)
    if isinstance(old, dict) and not isinstance(old, OrderedDict):  # whose keys have no order to optree
        parts = [(key, new[key]) for key in old if key in new] if len(new) == len(old) else []
    if [key for key, _ in parts] != [key for key, _ in wanted]:
        return False
    return all(_is_like(a, b) for (_, a), (_, b) in zip(parts, wanted, strict=True))


def _why_no_fit(outputs: Any, args: Sequence[Any], positions: Sequence[int]) -> str:
    if not (isinstance(outputs, (tuple, list)) and len(outputs) >= len(positions)):
        got = f"{len(outputs)}" if isinstance(outputs, (tuple, list)) else f"a {type(outputs).__name__}"
        return f"compile: the function must return a tuple with the new values of {len(positions)} arguments, got {got}"
    for number, position in enumerate(positions):
        for path, leaf in tree.leaves_with_paths(outputs[number]):
            if not isinstance(leaf, Tensor):
                return f"compile: output {number} at {path!r} is a {type(leaf).__name__}, expected a tensor"
        try:
            tree.check_same(outputs[number], args[position], f"compile: output {number}", f"argument {position}")
        except ValueError as error:
            return f"{error} It was to take that argument's memory; nothing was written."
    raise AssertionError("the outputs fit")


def _is_number(leaf: Any) -> bool:
    return isinstance(leaf, (float, int)) and not isinstance(leaf, bool)


def _numbers_to_tensors(args: tuple[Any, ...]) -> tuple[Any, ...]:
    leaves = tree.leaves(args)
    if not any(map(_is_number, leaves)):
        return args
    like = next((leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()), torch.zeros(()))
    floating = accumulator_dtype(like.dtype)

    def convert(leaf: Any) -> Any:
        if not _is_number(leaf):
            return leaf
        return torch.tensor(leaf, dtype=floating if isinstance(leaf, float) else torch.int64, device=like.device)

    everything: Any = args
    converted: Any = optree.tree_map(convert, everything)  # the settings of schedules too
    return converted
