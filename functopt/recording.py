"""Recording what a function does to a sample of a tensor, on a :class:`Tape <functopt.tape.Tape>`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from functopt.folding import Noted
from functopt.tape import SUM, Tape

__all__ = ["record", "record_with_sums"]

_FILLED = {torch.ops.aten.new_full, torch.ops.aten.new_zeros, torch.ops.aten.new_ones}
_SAME = {torch.ops.aten.detach.default, torch.ops.aten.alias.default}


class _Facts(NamedTuple):
    """What is known of an operation."""

    writes: list[int]  # the arguments that it writes to
    aliases: bool  # whether it returns one of its arguments, or a view of it
    fills: bool  # whether it takes no more than the dtype and device from its first argument


@functools.cache
def _facts(func: Any) -> _Facts:
    writes = [i for i, a in enumerate(func._schema.arguments) if a.alias_info and a.alias_info.is_write]
    aliases = any(r.alias_info for r in func._schema.returns)
    return _Facts(writes, aliases, func.overloadpacket in _FILLED)


class _Recorder(TorchDispatchMode):
    """Notes every operation that runs, until one comes that cannot be played back.

    Args:
        inputs: tensors of one shape, and 0-d tensors.
        sums: whether sums over the slice may be among them.
    """

    def __init__(self, inputs: Sequence[Tensor], sums: bool = False) -> None:
        super().__init__()
        self.inputs, self.sums = len(inputs), sums
        self.values: list[Any] = [*inputs]  # keeps them alive, so that an id stands for one tensor
        self.kept: list[Tensor] = []  # other names of values
        self.number = {id(x): i for i, x in enumerate(inputs)}
        self.results: set[int] = set()
        self.ops: list[Noted] = []
        self.shape = next(x.shape for x in inputs if x.ndim)
        self.playable = all(x.shape in (self.shape, ()) for x in inputs)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.playable = self.playable and self._note(func, args, kwargs or {}, out)
        return out

    def _note(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> bool:
        if not any(isinstance(value, Tensor) for value in (out, *args, *kwargs.values())):
            return True  # about dtypes and the like
        # views and lists, which are shapes mostly, belong to this slice alone, and so do numbers read from tensors
        if not isinstance(out, Tensor) or out.shape not in (self.shape, ()):
            return False
        if any(isinstance(value, Tensor) or _is_shape(value) for value in kwargs.values()):
            return False
        facts = _facts(func)
        if facts.fills and out.ndim == 0:
            self._number_of(out)  # a constant, whatever the tensor that it takes dtype and device from holds
            return True
        numbers = [self._number_of(value) for value in args]
        if func in _SAME and numbers[0] >= 0:
            self.number[id(out)] = numbers[0]
            self.kept.append(out)
            return True
        if -1 in numbers:
            return False
        tensors = [i for i, value in zip(numbers, args, strict=True) if isinstance(value, Tensor)]
        if out.ndim == 0 and any(self.values[i].ndim for i in tensors) and not (self.sums and func is SUM):
            return False
        if facts.writes:
            if any(numbers[i] not in self.results for i in facts.writes) or id(out) not in self.number:
                return False
        elif facts.aliases or id(out) in self.number:
            return False
        if id(out) not in self.number:
            self.number[id(out)] = len(self.values)
            self.values.append(out)
        result = self.number[id(out)]
        self.results.add(result)
        self.ops.append(Noted(func, tuple(numbers), kwargs, result))
        return True

    def _number_of(self, value: Any) -> int:
        """Return the place of a value in memory, or -1 if it may be another for another slice."""
        if isinstance(value, Tensor) and id(value) in self.number:
            return self.number[id(value)]
        if _is_shape(value) or (isinstance(value, Tensor) and value.ndim):
            return -1
        self.number[id(value)] = len(self.values)
        self.values.append(value)
        return self.number[id(value)]


def _is_shape(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) > 0  # that of a 0-d tensor is the same for all slices


def record(f: Callable[[], tuple[Any, Sequence[Tensor]]], inputs: Sequence[Tensor]) -> tuple[Any, Tape | None]:
    """Run a function and return what it returns, and a tape of it, or None if it cannot be played for other slices.

    Args:
        f: returns anything, and for each of the inputs the tensor that takes its place, itself if none does.
        inputs: tensors of one shape, and 0-d tensors.
    """
    with _Recorder(inputs) as recorder:
        result, outputs = f()
    numbers = [recorder.number.get(id(out), -1) for out in outputs]
    known = {*range(recorder.inputs), *recorder.results}
    return result, Tape(
        recorder.ops, recorder.values, recorder.inputs, numbers
    ) if recorder.playable and known.issuperset(numbers) else None


def record_with_sums(f: Callable[[list[Tensor]], Sequence[Tensor]], inputs: Sequence[Sequence[Tensor]]) -> Tape | None:
    """Return a tape of a function of a whole tensor, which may take sums over it and divide by its length.

    What is a number of the function itself, and what the length, shows in two recordings of different length.

    Args:
        f: returns for each of its inputs the tensor that takes its place, itself if none does.
        inputs: two samples of its arguments, tensors of a length and 0-d tensors; nothing is written into them.

    Returns:
        The tape, or None if the function cannot be played in passes over slices.
    """
    recorders, outputs = [], []
    for sample in inputs:
        with _Recorder(sample, sums=True) as recorder:
            out = f(list(sample))
        recorders.append(recorder)
        outputs.append([recorder.number.get(id(new), -1) for new in out])
    first, second = recorders
    known = {*range(first.inputs), *first.results}
    in_place = any(op.result in op.args for op in first.ops)
    if not (first.playable and second.playable and known.issuperset(outputs[0])) or in_place:
        return None
    if outputs[0] != outputs[1] or first.ops != second.ops:
        return None
    constants = [i for i in range(first.inputs, len(first.values)) if i not in first.results]
    sizes = first.shape.numel(), second.shape.numel()
    lengths = [i for i in constants if (first.values[i], second.values[i]) == sizes]
    same = all(_alike(first.values[i], second.values[i]) for i in constants if i not in lengths)
    return Tape(first.ops, first.values, first.inputs, outputs[0], lengths) if same else None


def _alike(x: Any, y: Any) -> bool:
    if x is y:
        return True
    if isinstance(x, Tensor):
        return isinstance(y, Tensor) and x.dtype == y.dtype and x.device == y.device and bool(x == y)
    return type(x) is type(y) and x == y
