"""What a function does to one slice of a tensor, so that it can be done to the others.

Playing a tape back spares the Python around every operation, and intermediate results take turns in a few buffers,
which stay in the cache; new values are written where the old ones are, as soon as nothing needs those any more.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from functopt.folding import FOLDED, Noted, fold

__all__ = ["SUM", "Buffers", "Tape", "deterministic"]


class _Op(NamedTuple):
    """One operation: what it calls, which places of the memory it reads, and where its result goes."""

    call: Callable[..., Any]
    reads: Callable[[list[Any]], tuple[Any, ...]]
    kwargs: dict[str, Any]
    to: int
    in_place: bool  # whether ``call`` is told where the result goes


class Buffers:
    """Memory in which intermediate results take turns; fresh memory would have to be cleared by the system first.

    Args:
        entries: how many each buffer has at least.
    """

    def __init__(self, entries: int = 0) -> None:
        self.entries = entries
        self._known: dict[tuple[int, torch.dtype, torch.device], Tensor] = {}

    def take(self, number: int, dtype: torch.dtype, like: Tensor) -> Tensor:
        """Return the buffer of a number, as long as a slice and on its device."""
        numel, key = like.numel(), (number, dtype, like.device)
        if key not in self._known or self._known[key].numel() < numel:
            self._known[key] = torch.empty(max(numel, self.entries), dtype=dtype, device=like.device)
        return self._known[key][:numel]


class Tape:
    """The operations of a function: those on slices, and those on 0-d tensors, which all slices have in common.

    A function that takes sums over the whole tensor is played in as many passes over the slices as its sums are nested
    in one another, and one more. Passes before the last one compute no more than the sums, and write nothing. ::

        memory = tape.start(inputs)
        for number in range(tape.passes):
            for slice in slices:
                tape.play(memory, slice, number)
            tape.finish(memory, number)

    Args:
        noted: the operations of the function, in the order in which they ran.
        values: by their numbers, the inputs first, then what was computed and the constants.
        inputs: how many of them are inputs.
        outputs: for each input the number of what takes its place; itself if nothing does.
        lengths: the numbers of values that are the number of entries of the tensor.

    Attributes:
        room: its buffers; tapes that are played one after the other may share them.
    """

    def __init__(
        self, noted: list[Noted], values: list[Any], inputs: int, outputs: Sequence[int], lengths: Sequence[int] = ()
    ) -> None:
        results = {op.result for op in noted}
        self.memory: list[Any] = [None if i < inputs or i in results else x for i, x in enumerate(values)]
        self.lengths, self.room = lengths, Buffers()
        self._started: tuple[Any, list[Any]] = None, []  # for which 0-d inputs, and what was computed
        self._entries = next(i for i, value in enumerate(values) if value.ndim)
        level = _levels(noted, values)
        ops = [op for op in noted if _on_slices(op, values)]
        ops, same = _without_repetitions(ops, values)
        self.scalars = [(i, same.get(new, new)) for i, new in enumerate(outputs) if new != i and values[i].ndim == 0]
        new = {i: same.get(new, new) for i, new in enumerate(outputs) if new != i and values[i].ndim}
        self.passes = 1 + max(level.values(), default=0)
        scalar_ops = [op._replace(args=tuple(same.get(i, i) for i in op.args)) for op in noted]
        scalar_ops = [op for op in scalar_ops if values[op.result].ndim == 0 and not _on_slices(op, values)]
        self._repeatable = all(deterministic(op.func) for op in scalar_ops)
        self._passes: list[_Pass] = []
        for number in range(self.passes):
            last = number == self.passes - 1
            own = [_plain(op) for op in scalar_ops if level[op.result] == number]
            sums = [] if last else [op.result for op in ops if _is_sum(op, values) and level[op.result] == number + 1]
            self._passes.append(_Pass(self, own, sums))
            needed = _needed(ops, values, [*new.values()] if last else sums) if self.passes > 1 else ops
            self._passes[-1].place(needed, values, inputs, new if last else {})

    @property
    def ops(self) -> list[_Op]:
        """What is done to a slice in the last pass."""
        return self._passes[-1].ops

    @property
    def buffers(self) -> dict[int, torch.dtype]:
        """The places of the last pass that intermediate results take turns in."""
        return self._passes[-1].buffers

    @property
    def copies(self) -> list[tuple[int, int, bool]]:
        """What the last pass has to copy, since it could not be written where it belongs at once."""
        return self._passes[-1].copies

    def start(self, inputs: Sequence[Tensor], length: int = 0) -> list[Any]:
        """Compute what the slices of one tensor have in common.

        Args:
            inputs: as for :meth:`play`; only the 0-d tensors among them are read.
            length: the number of entries of the tensor.
        """
        scalars = [x for x in inputs if not x.ndim]
        # mostly all parameters have the same bookkeeping; elsewhere than on the CPU one would have to wait for numbers
        known = self._repeatable and all(type(x) is Tensor and x.device.type == "cpu" for x in scalars)
        at = (length if self.lengths else 0, *[x.item() for x in scalars]) if known else None
        if at is None or at != self._started[0]:
            memory = [*inputs, *self.memory[len(inputs) :]]
            for i in self.lengths:
                memory[i] = length
            self._passes[0].begin(memory)
            self._started = at, memory[len(inputs) :]
        return [*inputs, *self._started[1]]

    def play(self, memory: list[Any], inputs: Sequence[Tensor], number: int = 0) -> None:
        """Do to a slice what was recorded; in the last pass its new values take the place of the old ones.

        Args:
            memory: from :meth:`start`.
            inputs: the tensors of the slice, in the order in which they were recorded.
            number: of the pass.
        """
        self._passes[number].play(memory, inputs, inputs[self._entries], self.room)

    def finish(self, memory: list[Any], number: int = 0) -> None:
        """End a pass, when all slices have been played."""
        if number + 1 < self.passes:
            self._passes[number + 1].begin(memory)


class _Pass:
    """One pass over the slices.

    Args:
        tape: the tape, in whose memory places are made.
        scalar_ops: what is done before.
        sums: the places of the sums that it computes.
    """

    def __init__(self, tape: Tape, scalar_ops: list[_Op], sums: list[int]) -> None:
        self.template, self.scalar_ops, self.sums = tape.memory, scalar_ops, sums

    def begin(self, memory: list[Any]) -> None:
        """Compute what the slices have in common in this pass."""
        memory += self.template[len(memory) :]
        for op in self.scalar_ops:
            memory[op.to] = op.call(*op.reads(memory), **op.kwargs)
        for i in self.sums:
            memory[i] = 0.0

    def _number(self, compute: Callable[..., float], places: Sequence[int]) -> int:
        """Return the place of a number of Python's that is computed before, as which a factor is needed."""
        place = self._new_place()
        self.scalar_ops.append(_Op(compute, _getter([*places]), {}, place, False))
        return place

    def _new_place(self) -> int:
        self.template.append(None)
        return len(self.template) - 1

    def place(self, ops: list[Noted], values: list[Any], inputs: int, outputs: dict[int, int]) -> None:
        """Decide where each result goes: over the input it replaces, or into memory that is free by then.

        That may be the place of an input which is not read any more and is replaced later.
        """
        ops = fold(ops, values, [*outputs.values(), *self.sums], self._number)
        last = {i: k for k, op in enumerate(ops) for i in (*op.args, op.result)}
        last.update(dict.fromkeys(outputs.values(), len(ops)))
        replaces = {new: i for i, new in outputs.items()}
        made = {op.result: k for k, op in reversed([*enumerate(ops)])}  # first, before any change of it
        replaced = {i: made[new] for i, new in outputs.items() if new in made and _pointwise(ops[made[new]])}
        place = {i: i for i in range(len(self.template))}
        self.buffers: dict[int, torch.dtype] = {}
        self.ops: list[_Op] = []
        free: list[int] = []

        def spent(k: int, op: Noted) -> int:
            """Return the place of an input that is read last here, if the result is not needed once it is replaced."""
            places = (place[i] for i in op.args if _pointwise(op) and last[i] == k and place[i] in replaced)
            fits = (i for i in places if last[op.result] <= replaced[i] and values[i].dtype == values[op.result].dtype)
            return next((i for i in fits if last[i] <= k), -1)

        for k, op in enumerate(ops):
            gone = [i for i in {*op.args} if last[i] == k and place[i] in self.buffers and i != op.result]
            if _pointwise(op):
                free += [place[i] for i in gone]
            call = FOLDED.get((op.func, len(op.args)))
            out = None if _is_sum(op, values) else call or _out_variant(op.func)
            dtype = values[op.result].dtype
            over = replaces.get(op.result, -1)
            if op.result in op.args or out is None:  # in place already, or never
                self.ops.append(_plain(op, place))
            else:
                if over >= 0 and last.get(over, -1) <= (k if _pointwise(op) else k - 1) and values[over].dtype == dtype:
                    to = over
                elif (to := spent(k, op)) < 0:
                    to = next((b for b in free if self.buffers[b] == dtype), -1)
                    if to < 0:
                        to = self._new_place()
                        self.buffers[to] = dtype
                    else:
                        free.remove(to)
                reads = _getter([place[i] for i in op.args])
                place[op.result] = to
                self.ops.append(_Op(out, reads, {} if call else op.kwargs, to, True))
            if not _pointwise(op):
                free += [place[i] for i in gone]
        # what could not be written at once; an input that moves is read before anything is written
        self.copies = [(i, place[new], new < inputs) for i, new in outputs.items() if place[new] != i]

    def play(self, memory: list[Any], inputs: Sequence[Tensor], one: Tensor, room: Buffers) -> None:
        """Do to a slice what was recorded, and add up its part of the sums."""
        common, memory = memory, [*inputs, *memory[len(inputs) :]]
        for number, (i, dtype) in enumerate(self.buffers.items()):
            memory[i] = room.take(number, dtype, one)
        for call, reads, kwargs, to, in_place in self.ops:
            if in_place:
                call(*reads(memory), **kwargs, out=memory[to])
            else:
                memory[to] = call(*reads(memory), **kwargs)
        for i in self.sums:
            common[i] = common[i] + memory[i]
        moved = [memory[source].clone() if moves else memory[source] for _, source, moves in self.copies]
        for (to, _, _), value in zip(self.copies, moved, strict=True):
            memory[to].copy_(value)


def _pointwise(op: Noted) -> bool:
    return torch.Tag.pointwise in op.func.tags


def _is_sum(op: Noted, values: list[Any]) -> bool:
    return op.func is SUM and bool(values[op.args[0]].ndim)


def _on_slices(op: Noted, values: list[Any]) -> bool:
    return bool(values[op.result].ndim) or _is_sum(op, values)


def _levels(ops: list[Noted], values: list[Any]) -> dict[int, int]:
    """Return for each result how many sums, one in the other, it is made of."""
    level: dict[int, int] = {}
    for op in ops:
        level[op.result] = max((level.get(i, 0) for i in op.args), default=0) + _is_sum(op, values)
    return level


def _needed(ops: list[Noted], values: list[Any], results: Sequence[int]) -> list[Noted]:
    """Return the operations without which the results cannot be had; other sums are known by then.

    None of the operations may be in place.
    """
    wanted, kept = {*results}, []
    for op in reversed(ops):
        if op.result in wanted and (op.result in results or not _is_sum(op, values)):
            wanted.update(op.args)
            kept.append(op)
    return kept[::-1]


@functools.cache
def deterministic(func: Any) -> bool:
    """Tell whether an operation gives the same every time."""
    return torch.Tag.nondeterministic_seeded not in func.tags


SUM = torch.ops.aten.sum.default


def _without_repetitions(ops: list[Noted], values: list[Any]) -> tuple[list[Noted], dict[int, int]]:
    """Leave out what was computed before; also return which number stands in for which."""
    changed = {op.result for op in ops if op.result in op.args}
    same: dict[int, int] = {}
    seen: dict[Any, int] = {}
    kept: list[Noted] = []
    for op in ops:
        args = tuple(same.get(i, i) for i in op.args)
        means = [i if isinstance(values[i], Tensor) else (type(values[i]), values[i]) for i in args]
        key = op.func, tuple(means), tuple(sorted(op.kwargs.items()))
        repeatable = not changed.intersection((op.result, *args)) and deterministic(op.func)
        if repeatable and key in seen:
            same[op.result] = seen[key]
            continue
        kept.append(op._replace(args=args))
        if repeatable:
            seen[key] = op.result
    return kept, same


def _plain(op: Noted, place: dict[int, int] | None = None) -> _Op:
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
