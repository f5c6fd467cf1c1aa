"""What a function does to one slice of its tensors, along their first axis, so that it can be done to the others.

Playing a tape back spares the Python around every operation, and intermediate results take turns in a few buffers,
which stay in the cache; new values are written where the old ones are, as soon as nothing needs those any more.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, NamedTuple

import torch
from torch import Tensor

from functopt.folding import FOLDED, Noted, fold

__all__ = ["REDUCTIONS", "Buffers", "Program", "Tape", "deterministic"]

THIN = 3  # what is so many times smaller than the largest is kept from pass to pass


_ALL = slice(None)


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

    def take(self, number: int, dtype: torch.dtype, shape: Sequence[int], device: torch.device) -> Tensor:
        """Return the buffer of a number in a shape."""
        numel, key = math.prod(shape), (number, dtype, device)
        if key not in self._known or self._known[key].numel() < numel:
            self._known[key] = torch.empty(max(numel, self.entries), dtype=dtype, device=device)
        return self._known[key][:numel].view(shape)


class Program(NamedTuple):
    """What a function does.

    Args:
        noted: the operations, in the order in which they ran.
        values: by their numbers, the inputs first, then what was computed and the constants. Of tensors that are no
            constants only dtypes and shapes count.
        inputs: how many of them are inputs.
        outputs: for each input the number of what takes its place; itself if nothing does.
        sliced: the numbers of what belongs to a slice.
    """

    noted: list[Noted]
    values: list[Any]
    inputs: int
    outputs: Sequence[int]
    sliced: AbstractSet[int]

    def flattened(self) -> Program | None:
        """Return the same for tensors as vectors; None if it is not the same, because axes matter."""
        whole = self.values[min(self.sliced)].shape
        for op in self.noted:
            if not self.sliced.isdisjoint(op.args) and any(isinstance(self.values[i], list) for i in op.args):
                return None
        for i, x in enumerate(self.values):
            if isinstance(x, Tensor) and x.shape != (whole if i in self.sliced else ()):
                return None
        flat = lambda i, x: torch.empty(whole.numel(), dtype=x.dtype, device="meta") if i in self.sliced else x
        return self._replace(values=[flat(i, x) for i, x in enumerate(self.values)])

    def is_like(self, other: Program) -> bool:
        """Tell whether another program is the same, but for the number of rows."""
        if self.noted != other.noted or self.outputs != other.outputs or self.sliced != other.sliced:
            return False
        made = {*range(self.inputs), *(op.result for op in self.noted)}

        def is_same(i: int, x: Any, y: Any) -> bool:
            if i in made:
                skipped = int(i in self.sliced)
                return x.dtype == y.dtype and x.shape[skipped:] == y.shape[skipped:]
            return x is y or (type(x) is type(y) and not isinstance(x, Tensor) and x == y)

        pairs = zip(self.values, other.values, strict=False)
        return len(self.values) == len(other.values) and all(is_same(i, x, y) for i, (x, y) in enumerate(pairs))


class Tape:
    """The operations of a function: those on slices, and those on what all slices have in common.

    A function that takes sums over all slices is played in as many passes over them as its sums are nested in one
    another, and one more. Passes before the last one compute no more than the sums, and write nothing; what is thin
    (such as a mean of every row) is kept for the passes that follow. ::

        memory = tape.start(inputs)
        for number in range(tape.passes):
            for at in slices:
                tape.play(memory, [input[at] for those in slices, others as they are], number, at)
            tape.finish(memory, number)

    Args:
        program: what the function does.

    Attributes:
        room: its buffers; tapes that are played one after the other may share them.
        common: of the inputs that all slices have in common, those that something takes the place of, with its number.
    """

    def __init__(self, program: Program) -> None:
        noted, values, inputs, outputs, sliced = program
        results = {op.result for op in noted}
        self.memory: list[Any] = [None if i < inputs or i in results else x for i, x in enumerate(values)]
        self.sliced, self.room = sliced, Buffers()
        self._started: tuple[Any, list[Any]] = None, []  # for which 0-d inputs, and what was computed
        self._first = min(sliced)
        level = _levels(noted, sliced)
        ops = [op for op in noted if op.result in sliced or _is_sum(op, sliced)]
        ops, same = _without_repetitions(ops, values)
        new = {i: same.get(number, number) for i, number in enumerate(outputs) if number != i}
        self.common = [(i, number) for i, number in new.items() if i not in sliced]
        new = {i: number for i, number in new.items() if i in sliced}
        self.passes = 1 + max(level.values(), default=0)
        common_ops = [op._replace(args=tuple(same.get(i, i) for i in op.args)) for op in noted]
        common_ops = [op for op in common_ops if op.result not in sliced and not _is_sum(op, sliced)]
        self._repeatable = all(deterministic(op.func) for op in common_ops)
        wanted: list[list[int]] = [[] for _ in range(self.passes)]
        for op in ops:
            if _is_sum(op, sliced):
                wanted[level[op.result] - 1].append(op.result)
        wanted[-1] = [*new.values()]
        size = max(math.prod(values[i].shape[1:]) for i in sliced if i < inputs)
        thin = {op.result for op in ops if math.prod(values[op.result].shape[1:]) * THIN <= size} & sliced
        done = _in_passes(ops, wanted, sliced, thin) if self.passes > 1 else [ops]
        kept = _kept(done, wanted, thin)
        self._passes: list[_Pass] = []
        for number, own in enumerate(done):
            last = number == self.passes - 1
            before = [_plain(op) for op in common_ops if level[op.result] == number]
            sums = [] if last else [(op.result, REDUCTIONS[op.func]) for op in own if op.result in wanted[number]]
            self._passes.append(_Pass(self, before, sums, kept[: number + 1]))
            self._passes[-1].place(own, values, inputs, new if last else {})

    @property
    def ops(self) -> list[_Op]:
        """What is done to a slice in the last pass."""
        return self._passes[-1].ops

    @property
    def buffers(self) -> dict[int, tuple[Sequence[int], torch.dtype]]:
        """The places of the last pass that intermediate results take turns in."""
        return self._passes[-1].buffers

    @property
    def copies(self) -> list[tuple[int, int, bool]]:
        """What the last pass has to copy, since it could not be written where it belongs at once."""
        return self._passes[-1].copies

    def start(self, inputs: Sequence[Tensor]) -> list[Any]:
        """Compute what all slices have in common.

        Args:
            inputs: the whole tensors; only what the slices have in common is read.
        """
        common = [x for i, x in enumerate(inputs) if i not in self.sliced]
        # mostly all parameters have the same bookkeeping; elsewhere than on the CPU one would have to wait for numbers
        known = self._repeatable and all(type(x) is Tensor and not x.ndim and x.device.type == "cpu" for x in common)
        at = [x.item() for x in common] if known else None
        if at is not None and at == self._started[0]:
            memory = [*inputs, *self._started[1]]
        else:
            memory = [*inputs, *self.memory[len(inputs) :]]
            self._passes[0].begin(memory)
            self._started = at, memory[len(inputs) :] if known else []
        self._passes[0].make_room(memory)
        return memory

    def play(self, memory: list[Any], inputs: Sequence[Tensor], number: int = 0, at: slice = _ALL) -> None:
        """Do to a slice what was recorded; in the last pass its new values take the place of the old ones.

        Args:
            memory: from :meth:`start`.
            inputs: the tensors of the slice, in the order in which they were recorded.
            number: of the pass.
            at: which slice it is.
        """
        self._passes[number].play(memory, inputs, at, inputs[self._first], self.room)

    def finish(self, memory: list[Any], number: int = 0) -> None:
        """End a pass, when all slices have been played."""
        if number + 1 < self.passes:
            self._passes[number + 1].begin(memory)
            self._passes[number + 1].make_room(memory)


class _Pass:
    """One pass over the slices.

    Args:
        tape: the tape, in whose memory places are made.
        common_ops: what is done before.
        sums: the places of the sums that it computes, and how those of two slices become one.
        kept: of this and every pass before, the places of what is kept.
    """

    def __init__(
        self, tape: Tape, common_ops: list[_Op], sums: list[tuple[int, Any]], kept: Sequence[AbstractSet[int]]
    ) -> None:
        self.template, self.sliced, self.first = tape.memory, tape.sliced, tape._first
        self.common_ops, self.sums, self.keeps = common_ops, sums, kept[-1]
        self.at_hand = [i for places in kept for i in places]

    def begin(self, memory: list[Any]) -> None:
        """Compute what the slices have in common in this pass."""
        memory += self.template[len(memory) :]
        for op in self.common_ops:
            memory[op.to] = op.call(*op.reads(memory), **op.kwargs)
        for i, _ in self.sums:
            memory[i] = None

    def make_room(self, memory: list[Any]) -> None:
        """Make room for what is kept until the last pass."""
        one = memory[self.first]
        for i in self.keeps:
            shape, dtype = self.kinds[i]
            memory[i] = torch.empty((len(one), *shape), dtype=dtype, device=one.device)

    def _number(self, compute: Callable[..., float], places: Sequence[int]) -> int:
        """Return the place of a number of Python's that is computed before, as which a factor is needed."""
        place = self._new_place()
        self.common_ops.append(_Op(compute, _getter([*places]), {}, place, False))
        return place

    def _new_place(self) -> int:
        self.template.append(None)
        return len(self.template) - 1

    def place(self, ops: list[Noted], values: list[Any], inputs: int, outputs: dict[int, int]) -> None:
        """Decide where each result goes: over the input it replaces, or into memory that is free by then.

        That may be the place of an input which is not read any more and is replaced later.
        """
        ops = fold(ops, values, [*outputs.values(), *(i for i, _ in self.sums), *self.keeps], self._number)
        kind = lambda i: (values[i].shape[1:], values[i].dtype)
        self.kinds = {i: kind(i) for i in self.keeps}
        last = {i: k for k, op in enumerate(ops) for i in (*op.args, op.result)}
        last.update(dict.fromkeys(outputs.values(), len(ops)))
        replaces = {new: i for i, new in outputs.items()}
        made = {op.result: k for k, op in reversed([*enumerate(ops)])}  # first, before any change of it
        replaced = {i: made[new] for i, new in outputs.items() if new in made and _pointwise(ops[made[new]])}
        place = {i: i for i in range(len(self.template))}
        self.buffers: dict[int, tuple[Sequence[int], torch.dtype]] = {}  # what shape the rows have
        self.ops: list[_Op] = []
        self.kept_later: list[int] = []  # what could not be written where it is kept at once
        free: list[int] = []

        def spent(k: int, op: Noted) -> int:
            """Return the place of an input that is read last here, if the result is not needed once it is replaced."""
            places = (place[i] for i in op.args if _pointwise(op) and last[i] == k and place[i] in replaced)
            fits = (i for i in places if last[op.result] <= replaced[i] and kind(i) == kind(op.result))
            return next((i for i in fits if last[i] <= k), -1)

        for k, op in enumerate(ops):
            gone = [i for i in {*op.args} if last[i] == k and place[i] in self.buffers and i != op.result]
            if _pointwise(op):
                free += [place[i] for i in gone]
            call = FOLDED.get((op.func, len(op.args)))
            out = None if _is_sum(op, self.sliced) else call or _out_variant(op.func)
            over = replaces.get(op.result, -1)
            if op.result in op.args or out is None:  # in place already, or never
                self.ops.append(_plain(op, place))
                self.kept_later += [op.result] if op.result in self.keeps else []
            else:
                at_once = last.get(over, -1) <= (k if _pointwise(op) else k - 1)
                if op.result in self.keeps:
                    to = op.result
                elif over >= 0 and at_once and kind(over) == kind(op.result):
                    to = over
                elif (to := spent(k, op)) < 0:
                    to = next((b for b in free if self.buffers[b] == kind(op.result)), -1)
                    if to < 0:
                        to = self._new_place()
                        self.buffers[to] = kind(op.result)
                    else:
                        free.remove(to)
                reads = _getter([place[i] for i in op.args])
                place[op.result] = to
                self.ops.append(_Op(out, reads, {} if call else op.kwargs, to, True))
            if not _pointwise(op):
                free += [place[i] for i in gone]
        # what could not be written at once; an input that moves is read before anything is written
        self.copies = [(i, place[new], new < inputs) for i, new in outputs.items() if place[new] != i]

    def play(self, memory: list[Any], inputs: Sequence[Tensor], at: slice, one: Tensor, room: Buffers) -> None:
        """Do to a slice what was recorded, and add up its part of the sums."""
        common, memory = memory, [*inputs, *memory[len(inputs) :]]
        for i in self.at_hand:
            memory[i] = common[i][at]
        for number, (i, (shape, dtype)) in enumerate(self.buffers.items()):
            memory[i] = room.take(number, dtype, (len(one), *shape), one.device)
        for call, reads, kwargs, to, in_place in self.ops:
            if in_place:
                call(*reads(memory), **kwargs, out=memory[to])
            else:
                memory[to] = call(*reads(memory), **kwargs)
        for i, add in self.sums:
            common[i] = memory[i] if common[i] is None else add(common[i], memory[i])
        for i in self.kept_later:
            common[i][at].copy_(memory[i])
        moved = [memory[source].clone() if moves else memory[source] for _, source, moves in self.copies]
        for (to, _, _), value in zip(self.copies, moved, strict=True):
            memory[to].copy_(value)


def _pointwise(op: Noted) -> bool:
    return torch.Tag.pointwise in op.func.tags


def _is_sum(op: Noted, sliced: AbstractSet[int]) -> bool:
    return op.result not in sliced and not sliced.isdisjoint(op.args)


def _levels(ops: list[Noted], sliced: AbstractSet[int]) -> dict[int, int]:
    """Return for each result how many sums, one in the other, it is made of."""
    level: dict[int, int] = {}
    for op in ops:
        level[op.result] = max((level.get(i, 0) for i in op.args), default=0) + _is_sum(op, sliced)
    return level


def _in_passes(
    ops: list[Noted], wanted: list[list[int]], sliced: AbstractSet[int], thin: AbstractSet[int]
) -> list[list[Noted]]:
    """Return for each pass the operations without which its results cannot be had.

    Sums of the passes before are known by then, and so is what is thin and was computed. None of the operations may be
    in place.
    """
    passes, known = [], set[int]()
    for results in wanted:
        needed, own = {*results} - known, []
        for op in reversed(ops):
            if op.result in needed and (op.result in results or not _is_sum(op, sliced)):
                needed.update(i for i in op.args if i not in known)
                own.append(op)
        known |= {op.result for op in own} & thin
        passes.append(own[::-1])
    return passes


def _kept(passes: list[list[Noted]], wanted: list[list[int]], thin: AbstractSet[int]) -> list[set[int]]:
    """Return for each pass what is thin and needed by a later one."""
    kept, later = [], set[int]()
    for own, results in zip(reversed(passes), reversed(wanted), strict=True):
        made = {op.result for op in own} & thin
        kept.append(made & later)
        later |= {i for op in own for i in op.args if i not in made} | {i for i in results if i not in made}
    return kept[::-1]


@functools.cache
def deterministic(func: Any) -> bool:
    """Tell whether an operation gives the same every time."""
    return torch.Tag.nondeterministic_seeded not in func.tags


_aten = torch.ops.aten
REDUCTIONS = {
    _aten.sum.default: torch.add,
    _aten.sum.dim_IntList: torch.add,
    _aten.amax.default: torch.maximum,
    _aten.amin.default: torch.minimum,
}
"""What may be taken over all slices, and how that of some and that of others become one."""


def _without_repetitions(ops: list[Noted], values: list[Any]) -> tuple[list[Noted], dict[int, int]]:
    """Leave out what was computed before; also return which number stands in for which."""
    changed = {op.result for op in ops if op.result in op.args}
    same: dict[int, int] = {}
    seen: dict[Any, int] = {}
    kept: list[Noted] = []
    for op in ops:
        args = tuple(same.get(i, i) for i in op.args)
        means = [i if isinstance(values[i], (Tensor, list)) else (type(values[i]), values[i]) for i in args]
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
