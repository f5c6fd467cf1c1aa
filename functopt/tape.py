"""What an elementwise function does to one slice of a tensor, recorded so that it can be done to the others.

Playing a tape back spares the Python around every operation, and intermediate results take turns in a few buffers,
which stay in the cache; new values are written where the old ones are, as soon as nothing needs those any more.
"""

from __future__ import annotations

import collections
import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Tape", "record"]


class _Op(NamedTuple):
    """One operation: what it calls, which places of the memory it reads, and where its result goes."""

    call: Callable[..., Tensor]
    reads: Callable[[list[Any]], tuple[Any, ...]]
    kwargs: dict[str, Any]
    to: int
    in_place: bool  # whether ``call`` is told where the result goes


class _Noted(NamedTuple):
    func: Any
    args: tuple[int, ...]
    kwargs: dict[str, Any]
    result: int


class Tape:
    """The operations of a function, split in two: those on 0-d tensors, and those on slices.

    Args:
        recorder: what was noted while the function ran.
        outputs: for each input the number of what takes its place; itself if nothing does.
    """

    def __init__(self, recorder: _Recorder, outputs: Sequence[int]) -> None:
        self.memory: list[Any] = [
            None if i < recorder.inputs or i in recorder.results else value for i, value in enumerate(recorder.values)
        ]
        self.scalar_ops = [_plain(op) for op in recorder.ops if recorder.values[op.result].ndim == 0]
        self.scalars = [(i, new) for i, new in enumerate(outputs) if new != i and recorder.values[i].ndim == 0]
        self._entries = next(i for i, value in enumerate(recorder.values) if value.ndim)
        self._buffers: dict[int, Tensor] = {}
        ops = [op for op in recorder.ops if recorder.values[op.result].ndim]
        ops, same = _without_repetitions(ops, recorder.values)
        new = {i: same.get(new, new) for i, new in enumerate(outputs) if new != i and recorder.values[i].ndim}
        ops = self._fold(ops, recorder.values, [*new.values()])
        self._place(ops, recorder.values, recorder.inputs, new)

    def _fold(self, ops: list[_Noted], values: list[Any], outputs: Sequence[int]) -> list[_Noted]:
        """Make one pass of a product with a number that is then added to something: ``add(y, x, alpha=number)``."""
        uses = collections.Counter([i for op in ops for i in op.args] + [*outputs])
        changed = {op.result for op in ops if op.result in op.args}
        products = {op.result: _factors(op, values) for op in ops if uses[op.result] == 1}
        kept: list[_Noted] = []
        for op in ops:
            sign = _SUMS.get(op.func, 0) if not op.kwargs and op.result not in changed else 0
            for y, product in (op.args, op.args[::-1])[: 2 if sign > 0 else 1] if sign else ():
                x, factor = products.get(product) or (-1, -1)
                same = x >= 0 and values[x].dtype == values[op.result].dtype and values[x].dtype in _EXACT
                plain = isinstance(values[y], Tensor) and values[y].dtype == values[x].dtype
                if same and plain and x not in changed:
                    kept = [other for other in kept if other.result != product]
                    op = op._replace(func=_ADD, args=(y, x, self._number(factor, sign, values)))
                    break
            kept.append(op)
        return kept

    def _number(self, factor: int, sign: int, values: list[Any]) -> int:
        """Return the place of a factor as a number of Python's, as which it is needed."""
        self.memory.append(None)
        place = len(self.memory) - 1
        if isinstance(values[factor], Tensor):
            take = lambda scalar: sign * scalar.item()
            self.scalar_ops.append(_Op(take, _getter([factor]), {}, place, False))
        else:
            self.memory[place] = sign * values[factor]
        return place

    def _place(self, ops: list[_Noted], values: list[Any], inputs: int, outputs: dict[int, int]) -> None:
        """Decide where each result goes: over the input it replaces, or into a buffer that is free by then."""
        last = {i: k for k, op in enumerate(ops) for i in (*op.args, op.result)}
        last.update(dict.fromkeys(outputs.values(), len(ops)))
        replaces = {new: i for i, new in outputs.items()}
        place = {i: i for i in range(len(self.memory))}
        self.buffers: dict[int, torch.dtype] = {}
        self.ops: list[_Op] = []
        free: list[int] = []
        for k, op in enumerate(ops):
            pointwise = torch.Tag.pointwise in op.func.tags
            gone = [i for i in {*op.args} if last[i] == k and place[i] in self.buffers and i != op.result]
            if pointwise:
                free += [place[i] for i in gone]
            folded = op.func is _ADD and len(op.args) == 3
            out, dtype = _add_scaled if folded else _out_variant(op.func), values[op.result].dtype
            over = replaces.get(op.result, -1)
            if op.result in op.args or out is None:  # in place already, or never
                self.ops.append(_plain(op, place))
            else:
                if over >= 0 and last.get(over, -1) <= (k if pointwise else k - 1) and values[over].dtype == dtype:
                    to = over
                else:
                    to = next((b for b in free if self.buffers[b] == dtype), len(self.memory))
                    if to == len(self.memory):
                        self.memory.append(None)
                        self.buffers[to] = dtype
                    else:
                        free.remove(to)
                reads = _getter([place[i] for i in op.args])
                place[op.result] = to
                self.ops.append(_Op(out, reads, op.kwargs, to, True))
            if not pointwise:
                free += [place[i] for i in gone]
        # what could not be written at once; an input that moves is read before anything is written
        self.copies = [(i, place[new], new < inputs) for i, new in outputs.items() if place[new] != i]

    def start(self, inputs: Sequence[Tensor]) -> list[Any]:
        """Compute what the slices of one tensor have in common.

        Args:
            inputs: as for :meth:`play`; only the 0-d tensors among them are read.
        """
        memory = [*inputs, *self.memory[len(inputs) :]]
        for op in self.scalar_ops:
            memory[op.to] = op.call(*op.reads(memory), **op.kwargs)
        return memory

    def play(self, memory: list[Any], inputs: Sequence[Tensor]) -> None:
        """Do to a slice what was recorded; its new values take the place of the old ones.

        Args:
            memory: from :meth:`start`.
            inputs: the tensors of the slice, in the order in which they were recorded.
        """
        memory = [*inputs, *memory[len(inputs) :]]
        one = inputs[self._entries]
        for i, dtype in self.buffers.items():
            if i not in self._buffers or self._buffers[i].numel() < one.numel():
                self._buffers[i] = torch.empty(one.shape, dtype=dtype, device=one.device)
            memory[i] = self._buffers[i][: one.numel()]
        for call, reads, kwargs, to, in_place in self.ops:
            if in_place:
                call(*reads(memory), **kwargs, out=memory[to])
            else:
                memory[to] = call(*reads(memory), **kwargs)
        moved = [memory[source].clone() if moves else memory[source] for _, source, moves in self.copies]
        for (to, _, _), value in zip(self.copies, moved, strict=True):
            memory[to].copy_(value)


_ADD = torch.ops.aten.add.Tensor
_SUMS = {_ADD: 1, torch.ops.aten.sub.Tensor: -1}
_PRODUCTS = {torch.ops.aten.mul.Tensor, torch.ops.aten.mul.Scalar}
_EXACT = {torch.float32, torch.float64}  # a product that is not rounded to bfloat16 would be another one


def _factors(op: _Noted, values: list[Any]) -> tuple[int, int] | None:
    """Return the slice and the number of which an operation is the product, if it is that and the number is at hand."""
    if op.func not in _PRODUCTS or op.kwargs or op.result in op.args:
        return None
    for x, factor in (op.args, op.args[::-1]):
        value = values[factor]
        if isinstance(value, Tensor):  # neither fake nor on a GPU, whose numbers one has to wait for
            scalar = type(value) is Tensor and value.ndim == 0 and value.device.type == "cpu"
        else:
            scalar = _is_real(value)
        if scalar and isinstance(values[x], Tensor) and values[x].ndim:
            return x, factor
    return None


def _is_real(value: Any) -> bool:
    return isinstance(value, (float, int)) and not isinstance(value, bool)


def _add_scaled(y: Tensor, x: Tensor, factor: float, *, out: Tensor) -> Tensor:
    return torch.add(y, x, alpha=factor, out=out)


def _without_repetitions(ops: list[_Noted], values: list[Any]) -> tuple[list[_Noted], dict[int, int]]:
    """Leave out what was computed before; also return which number stands in for which."""
    changed = {op.result for op in ops if op.result in op.args}
    same: dict[int, int] = {}
    seen: dict[Any, int] = {}
    kept: list[_Noted] = []
    for op in ops:
        args = tuple(same.get(i, i) for i in op.args)
        means = [i if isinstance(values[i], Tensor) else (type(values[i]), values[i]) for i in args]
        key = op.func, tuple(means), tuple(sorted(op.kwargs.items()))
        repeatable = not changed.intersection((op.result, *args)) and _facts(op.func).deterministic
        if repeatable and key in seen:
            same[op.result] = seen[key]
            continue
        kept.append(op._replace(args=args))
        if repeatable:
            seen[key] = op.result
    return kept, same


def _plain(op: _Noted, place: dict[int, int] | None = None) -> _Op:
    where = place or {}
    reads = _getter([where.get(i, i) for i in op.args])
    return _Op(op.func._op, reads, op.kwargs, where.get(op.result, op.result), False)


def _getter(places: list[int]) -> Callable[[list[Any]], tuple[Any, ...]]:
    if len(places) == 1:
        (only,) = places
        return lambda memory: (memory[only],)
    return operator.itemgetter(*places) if places else lambda memory: ()


@functools.cache
def _out_variant(func: Any) -> Any:
    """Return the overload of an operation that writes into a given tensor, or None."""
    own = [(a.name, str(a.type)) for a in func._schema.arguments]
    for name in func.overloadpacket.overloads():
        arguments = getattr(func.overloadpacket, name)._schema.arguments
        *others, last = [(a.name, str(a.type)) for a in arguments] or [("", "")]
        if last == ("out", "Tensor") and arguments[-1].is_out and others == own:
            return getattr(func.overloadpacket, name)._op
    return None


_FILLED = {torch.ops.aten.new_full, torch.ops.aten.new_zeros, torch.ops.aten.new_ones}
_SAME = {torch.ops.aten.detach.default, torch.ops.aten.alias.default}


class _Facts(NamedTuple):
    """What is known of an operation."""

    writes: list[int]  # the arguments that it writes to
    aliases: bool  # whether it returns one of its arguments, or a view of it
    fills: bool  # whether it takes no more than the dtype and device from its first argument
    deterministic: bool


@functools.cache
def _facts(func: Any) -> _Facts:
    writes = [i for i, a in enumerate(func._schema.arguments) if a.alias_info and a.alias_info.is_write]
    aliases = any(r.alias_info for r in func._schema.returns)
    return _Facts(writes, aliases, func.overloadpacket in _FILLED, torch.Tag.nondeterministic_seeded not in func.tags)


class _Recorder(TorchDispatchMode):
    """Notes every operation that runs, until one comes that cannot be played back."""

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self.inputs = len(inputs)
        self.values: list[Any] = [*inputs]  # keeps them alive, so that an id stands for one tensor
        self.kept: list[Tensor] = []  # other names of values
        self.number = {id(x): i for i, x in enumerate(inputs)}
        self.results: set[int] = set()
        self.ops: list[_Noted] = []
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
        self.ops.append(_Noted(func, tuple(numbers), kwargs, result))
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
    return result, Tape(recorder, numbers) if recorder.playable and known.issuperset(numbers) else None
