"""Compile a pure function so that it runs in its arguments' memory."""

from __future__ import annotations

import contextlib
import functools
import itertools
import threading
import types
from collections.abc import Callable, Sequence
from typing import Any

import optree
import torch
from torch import Tensor

from functopt import tree
from functopt.numerics import accumulator_dtype

__all__ = ["compile"]

_serial = itertools.count()


def compile(fn: Callable[..., Any], *, donate: Sequence[int] = (), **options: Any) -> Callable[..., Any]:
    """Compile a pure function; what it returns takes the place of donated arguments, in their memory.

    ``torch.compile`` of a function that returns new parameters and state writes them to fresh memory at every step.
    With ``donate`` the outputs are written into the arguments instead, as JAX's buffer donation does, so that purity
    costs nothing: the arguments hold the new values afterwards, and the old ones are gone.

    Python floats in the arguments are handed over as 0-d tensors, so that no change of a value recompiles.

    Args:
        fn: a pure function of positional arguments. With ``donate=(i, j)`` it returns a tuple whose first item has the
            structure, shapes and dtypes of argument ``i`` and whose second has those of argument ``j``.
        donate: positions of the arguments whose memory the first outputs take, in the order of the outputs.
        **options: for ``torch.compile``; the whole function is one graph unless ``fullgraph=False``.

    Returns:
        A function of the same arguments that returns the donated arguments, updated, and the other outputs.

    Raises:
        ValueError: a donated tensor appears twice or does not own all its memory (an expanded view); the message names
            its path. Checked before anything is overwritten.

    >>> step = compile(lambda params, state, grads: tx.update(grads, state, params), donate=(0, 1))
    >>> params, state = step(params, state, grads)
    """

    def run(*args: Any) -> Any:
        outputs = fn(*args)
        for position, new in zip(donate, outputs, strict=False):
            tree.map(lambda old, value: old.copy_(value), args[position], new)
        return outputs[len(donate) :] if donate else outputs

    # A code object and name of its own. Torch keeps compiled graphs by code object, and gives up after eight for one.
    # By name it remembers which floats have changed, such as a default of the optimizer in two calls of compile, and
    # makes them symbols, which vmap cannot lower (torch 2.14: "x must be Tensor or scalar, got SymFloat").
    code = run.__code__.replace(co_name=f"{getattr(fn, '__name__', 'fn')}_{next(_serial)}")
    own = types.FunctionType(code, run.__globals__, code.co_name, run.__defaults__, run.__closure__)
    compiled = torch.compile(own, **{"fullgraph": True, **options})

    def step(*args: Any) -> Any:
        if options.get("backend", "inductor") == "inductor":
            _try_compiler_early()
        donated = [args[position] for position in donate]
        _check_donated(donated, donate)
        rest = compiled(*_numbers_to_tensors(args))
        return (*donated, *rest) if donate else rest

    return step


@functools.cache
def _try_compiler_early() -> None:
    """Let torch try out the C++ compiler in the background, while it traces the function.

    Before its first kernel for the CPU torch builds small programs to learn which vector instructions work: 9 s of a
    cold start of 27 s (once for a cache folder), most of which then pass on the other core. Without that function, or
    its place, in another version of torch, torch does it when it comes to it.
    """
    with contextlib.suppress(ImportError, AttributeError):
        # what the thread needs is imported here: importing in two threads at once can fail
        from torch._inductor import codecache, cpp_builder, cpu_vec_isa  # noqa: F401

        threading.Thread(target=cpu_vec_isa.valid_vec_isa_list, daemon=True).start()


def _check_donated(donated: Sequence[Any], positions: Sequence[int]) -> None:
    seen: dict[int, str] = {}
    for position, argument in zip(positions, donated, strict=True):
        for path, leaf in tree.leaves_with_paths(argument):
            place = f"argument {position} at {path!r}"
            if not isinstance(leaf, Tensor):
                raise ValueError(f"compile: {place} is donated but is a {type(leaf).__name__}, not a tensor")
            if is_expanded(leaf):
                raise ValueError(
                    f"compile: {place} is an expanded view; donate a tensor that owns its memory (clone it)"
                )
            if leaf.numel() and seen.setdefault(leaf.data_ptr(), place) != place:
                raise ValueError(f"compile: {place} is the same memory as {seen[leaf.data_ptr()]}; donate it once")


def is_expanded(leaf: Tensor) -> bool:
    """Tell whether several entries of a tensor share one place in memory."""
    return any(stride == 0 and size > 1 for stride, size in zip(leaf.stride(), leaf.shape, strict=True))


def _numbers_to_tensors(args: tuple[Any, ...]) -> tuple[Any, ...]:
    leaves = tree.leaves(args)
    if not any(isinstance(leaf, float) for leaf in leaves):
        return args
    like = next((leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()), torch.zeros(()))
    dtype = accumulator_dtype(like.dtype)
    convert = lambda leaf: torch.tensor(leaf, dtype=dtype, device=like.device) if isinstance(leaf, float) else leaf
    everything: Any = args
    converted: Any = optree.tree_map(convert, everything)  # the settings of schedules too
    return converted
