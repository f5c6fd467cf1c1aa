"""Recording what a function does to a sample of a tensor, on a :class:`Tape <functopt.tape.Tape>`."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from functopt.folding import Noted
from functopt.tape import REDUCTIONS, Program, Tape, deterministic

__all__ = ["record", "record_by_rows"]

_aten = torch.ops.aten
_FILLED = {_aten.new_full, _aten.new_zeros, _aten.new_ones}
_SAME = {_aten.detach.default, _aten.alias.default}
_MEANS = {_aten.mean.default: _aten.sum.default, _aten.mean.dim: _aten.sum.dim_IntList}
_LIKE = {_aten.zeros_like.default, _aten.ones_like.default, _aten.full_like.default}
_ROW_BY_ROW = {_aten._to_copy.default, _aten.clone.default} | _LIKE  # beside those that torch calls pointwise


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
    """Notes every operation that runs on a slice, until one comes that cannot be played back.

    Args:
        inputs: tensors of one shape, and 0-d tensors.
    """

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self.inputs = len(inputs)
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
        if out.ndim == 0 and any(self.values[i].ndim for i in tensors):
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
    if not (recorder.playable and known.issuperset(numbers)):
        return result, None
    sliced = {i for i, value in enumerate(recorder.values) if isinstance(value, Tensor) and value.ndim}
    return result, Tape(Program(recorder.ops, recorder.values, recorder.inputs, numbers, sliced))


class _RowRecorder(TorchDispatchMode):
    """Notes every operation on tensors without data, until one comes that cannot be done slice by slice.

    Args:
        inputs: tensors on the device ``meta``.
        sliced: the numbers of those that are cut into slices along their first axis, all of one length.
        device: on which the operations will be played.
    """

    def __init__(self, inputs: Sequence[Tensor], sliced: AbstractSet[int], device: torch.device) -> None:
        super().__init__()
        self.values: list[Any] = [*inputs]  # keeps them alive, so that an id stands for one tensor
        self.kept: list[Tensor] = []  # other names of values
        self.number = {id(x): i for i, x in enumerate(inputs)}
        self.sliced, self.device = {*sliced}, device
        self.rows = inputs[min(sliced)].shape[0]
        self.ops: list[Noted] = []
        self.playable = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.playable = self.playable and self._note(func, args, kwargs or {}, out)
        return out

    def _note(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> bool:
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        if not tensors and not isinstance(out, Tensor):
            return not any(isinstance(value, list) and _has_tensor(value) for value in args)
        if not isinstance(out, Tensor) or any(map(_has_tensor, (*args, *kwargs.values()))) or not deterministic(func):
            return False
        if any(x.is_meta and id(x) not in self.number for x in tensors):
            return False  # a constant whose value nobody knows
        if func in _SAME and id(args[0]) in self.number:
            self.number[id(out)] = self.number[id(args[0])]
            self.kept.append(out)
            return True
        if _facts(func).writes or id(out) in self.number or any(isinstance(v, Tensor) for v in kwargs.values()):
            return False
        kwargs = {**kwargs, "device": self.device} if kwargs.get("device") is not None else kwargs
        if _facts(func).fills:
            value = args[2] if len(args) > 2 else float(func.overloadpacket is _aten.new_ones)
            func, args = _aten.full.default, [[*args[1]], value]
            kwargs, tensors = {"dtype": out.dtype, "device": self.device}, []
        cut = [x for x in tensors if self._number_of(x) in self.sliced]
        if not cut:
            self._add(func, args, kwargs, out)
        elif torch.Tag.pointwise in func.tags or func in _ROW_BY_ROW:
            if not self._is_row_by_row(tensors, out):
                return False
            self.sliced.add(self._add(func, args, kwargs, out))
        else:
            return self._reduce(func, args, kwargs, out)
        return True

    def _is_row_by_row(self, tensors: Sequence[Tensor], out: Tensor) -> bool:
        """Tell whether the slices of a pointwise result are made of the same slices, and of what is not cut."""
        if not out.ndim or out.shape[0] != self.rows:
            return False
        cut = [self._number_of(x) in self.sliced for x in tensors]
        return all(
            x.ndim == out.ndim if c else x.ndim < out.ndim or x.shape[0] == 1 for x, c in zip(tensors, cut, strict=True)
        )

    def _reduce(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> bool:
        """Note a reduction: of every row by itself, or of all rows."""
        x, *rest = args
        if func not in REDUCTIONS and func not in _MEANS:
            return False
        axes = [axis % x.ndim for axis in (rest[0] or () if rest else ())] or [*range(x.ndim)]
        if 0 not in axes:
            self.sliced.add(self._add(func, args, kwargs, out))
        elif func in REDUCTIONS:
            self._add(func, args, kwargs, out)
        else:
            total = torch.empty_like(out)
            self._add(_MEANS[func], args, kwargs, total)
            self._add(_aten.div.Tensor, [total, math.prod(x.shape[axis] for axis in axes)], {}, out)
        return True

    def _add(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> int:
        result = self._number_of(out)
        self.ops.append(Noted(func, tuple(map(self._number_of, args)), kwargs, result))
        return result

    def _number_of(self, value: Any) -> int:
        if id(value) not in self.number:
            self.number[id(value)] = len(self.values)
            self.values.append(value)
        return self.number[id(value)]


def _has_tensor(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and any(isinstance(x, Tensor) for x in value)


def record_by_rows(
    f: Callable[[list[Tensor]], Sequence[Tensor]], inputs: Sequence[Tensor], sliced: AbstractSet[int]
) -> Program | None:
    """Return what a function does, if a tape of it can be played in passes over slices along the first axis.

    The function is run on tensors without data. It may do the same to every entry, or combine entries of a row, and
    take sums, means and extremes over all rows.

    Args:
        f: returns for each of its inputs the tensor that takes its place, itself if none does.
        inputs: its arguments; nothing is written into them.
        sliced: the numbers of those that are cut into slices, all of one length. At least one is.

    Returns:
        The program, or None if the function does something else, or needs to know values.
    """
    device = inputs[min(sliced)].device
    stand_ins = [torch.empty_like(x, device="meta", requires_grad=False) for x in inputs]
    try:
        with _RowRecorder(stand_ins, sliced, device) as recorder:
            outputs = list(f([*stand_ins]))
    except Exception:  # no values to look at, no rule for this device: whatever it is, it shows where it runs with data
        return None
    numbers = [recorder.number.get(id(out), -1) for out in outputs]
    fits = all(
        (new in recorder.sliced) == (i in sliced) and out.shape == x.shape
        for i, (new, out, x) in enumerate(zip(numbers, outputs, stand_ins, strict=True))
    )
    if not recorder.playable or -1 in numbers or not fits:
        return None

    def real(x: Any) -> Any:  # a 0-d tensor may be folded into an operation as a number if it is where numbers are
        stands_in = isinstance(x, Tensor) and x.is_meta and not x.ndim
        return torch.empty((), dtype=x.dtype, device=device) if stands_in else x

    return Program(recorder.ops, [*map(real, recorder.values)], len(inputs), numbers, recorder.sliced)
