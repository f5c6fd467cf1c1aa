"""The pieces that eager steps are taken in: some parameters and their part of the state, as views."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import optree
import torch
from torch import Tensor

from functopt import tree
from functopt.base import Transform
from functopt.inplace import InPlace, Key, Values, same
from functopt.param_state import SHARED, entries, select
from functopt.recording import record, record_by_rows
from functopt.sharded import assign, storage
from functopt.stacks import StateKind, of_one, stacked_numbers, step_on_stacks
from functopt.tape import Buffers, Program, Tape
from functopt.tree import Tree

__all__ = ["Gathered", "Piece", "Recordings", "Rows", "Slices", "Stack", "Step", "Whole", "pairs_of"]

SAMPLE = 1 << 14  # entries with which a step is recorded
KEPT = 8  # recordings from step to step: those of the hypers that groups have now

Pairs = Iterable[tuple[Tensor, Tensor]]
Later = dict[int, tuple[Tensor, Tensor]]  # what is written when all pieces are done


class Step(NamedTuple):
    """What the pieces need to know of one step."""

    tx: Transform
    params: Mapping[Key, Tensor]
    grads: Mapping[Key, Tensor]
    values: Values
    extras: Any
    later: Later
    tapes: list[tuple[Any, Tape | None]]  # what was recorded, with the hypers and dtypes that it holds for
    recordings: Recordings
    memory: set[int]  # the storages of the state
    room: Buffers  # for what is computed on the way
    common: tuple[Tensor, ...] = ()  # 0-d tensors among the extras that are others at every step

    def write(self, pairs: Pairs) -> None:
        """Put new tensors where the old ones are."""
        # an entry may move to another place, as in a history of gradients: all is read before anything is written
        settled = [(old, new.clone() if storage(new) in self.memory else new) for old, new in pairs]
        for old, new in settled:
            assign(old, new)


def pairs_of(old: Tree, new: Tree) -> dict[int, tuple[Tensor, Tensor]]:
    """Return the tensors of a tree that others take the place of, with these, by their identity."""
    both = zip(tree.leaves(old), tree.leaves(new), strict=True)
    return {id(a): (a, b) for a, b in both if a is not b}


class Piece(Protocol):
    """Some of the parameters, and their part of the state, as views."""

    def __call__(self, step: Step) -> None:
        """Take the step; what belongs to several pieces goes into ``step.later``."""
        ...


class Whole:
    """Some parameters as they are."""

    def __init__(self, owner: InPlace, state: Tree, keys: Sequence[Key]) -> None:
        self.keys = keys
        self.state = select(state, owner.keys, {*keys})
        self.shared = {id(leaf) for (who, _), leaf in entries(self.state, {*keys}).items() if who is SHARED}

    def __call__(self, step: Step) -> None:
        keys = [key for key in self.keys if key in step.grads]
        if not keys:
            return
        state = self.state if len(keys) == len(self.keys) else select(self.state, {*self.keys}, {*keys})
        own, grads = {key: step.params[key] for key in keys}, {key: step.grads[key] for key in keys}
        new, new_state = step.tx.run(grads, state, own, step.values.for_keys(keys), **step.extras)
        pairs = pairs_of(state, new_state)
        for number in self.shared & pairs.keys():
            old, value = pairs.pop(number)
            step.later[number] = old, value.clone()
        step.write(pairs.values())
        for key, param in own.items():
            assign(param, new[key])


class Slices:
    """A large parameter, for elementwise optimizers: slices of neighbouring entries, each a tree that is one leaf.

    What is done to the first one is recorded and then done to the others, if it can be.
    """

    def __init__(self, owner: InPlace, state: Tree, key: Key, size: int) -> None:
        self.key, place = key, owner.layout.positions[key]
        self.shape, self.size = owner.layout.shapes[place], size
        self.whole = Whole(owner, state, [key])
        self.state = of_one(self.whole.state, key)
        self.slices = self._cut(0)
        self.after_sample: list[_Cut] | None = None

    def _cut(self, start: int) -> list[_Cut]:
        numel = self.shape.numel()
        return [self._part(at, min(at + self.size, numel)) for at in range(start, max(numel, start + 1), self.size)]

    def _part(self, start: int, stop: int) -> _Cut:
        at = slice(start, stop)
        state = tree.map(lambda t: t.view(-1)[at] if t.shape == self.shape else t, self.state)
        return _Cut(at, state, tree.leaves(state))

    def __call__(self, step: Step) -> None:
        if self.key not in step.grads:
            return
        if not step.params[self.key].is_contiguous():  # any more
            self.whole(step)
            return
        param, grad = step.params[self.key].view(-1), step.grads[self.key].reshape(-1)
        values = {name: step.values.of(name, self.key) for name in step.values.by_name}
        slices, tape = self.slices, self._known(step, values, param, grad)
        if tape is _NEW:
            if self.after_sample is None:
                sample = min(SAMPLE, param.numel())
                self.after_sample = [self._part(0, sample), *(self._cut(sample) if sample < param.numel() else ())]
            first, *slices = self.after_sample
            tape = self._note(step, values, param, grad, self._by_itself(step, values, first, param, grad, taped=True))
        if tape is None:
            for part in slices:
                self._by_itself(step, values, part, param, grad)
        elif slices:
            self._play(step, tape, slices, param, grad)

    def _kinds(self, param: Tensor, grad: Tensor, common: tuple[Tensor, ...]) -> Any:
        return [(x.dtype, x.device, x.ndim) for x in (param, grad, *self.slices[0].leaves, *common)]

    def _known(self, step: Step, values: dict[str, Any], param: Tensor, grad: Tensor) -> Tape | None:
        """Return the tape of a parameter like this one at this step, ``_NEW`` if there has been none."""
        kinds = self._kinds(param, grad, step.common)
        alike = (
            tape
            for (known, known_kinds), tape in step.tapes
            if kinds == known_kinds and all(same(value, known[name]) for name, value in values.items())
        )
        return next(alike, _NEW)

    def _note(self, step: Step, values: dict[str, Any], param: Tensor, grad: Tensor, tape: Tape | None) -> Tape | None:
        if tape is not None:
            tape.room = step.room
        step.tapes.append(((values, self._kinds(param, grad, step.common)), tape))
        return tape

    def _play(self, step: Step, tape: Tape, slices: list[_Cut], param: Tensor, grad: Tensor) -> None:
        memory = tape.start([param, grad, *slices[0].leaves, *step.common])
        for number in range(tape.passes):
            for at, _, leaves in slices:
                tape.play(memory, [param[at], grad[at], *leaves, *step.common], number)
            tape.finish(memory, number)
        leaves = [param, grad, *slices[0].leaves]
        step.later.update({id(leaves[i]): (leaves[i], memory[new]) for i, new in tape.common})

    def _by_itself(
        self, step: Step, values: dict[str, Any], part: _Cut, param: Tensor, grad: Tensor, *, taped: bool = False
    ) -> Tape | None:
        inputs = [param[part.at], grad[part.at], *part.leaves, *step.common]

        def run() -> tuple[dict[int, tuple[Tensor, Tensor]], list[Tensor]]:
            new, state = step.tx.run(inputs[1], part.state, inputs[0], values, **step.extras)
            outputs = [new, inputs[1], *tree.leaves(state), *step.common]
            return {id(old): (old, new) for old, new in zip(inputs, outputs, strict=True) if old is not new}, outputs

        pairs, tape = record(run, inputs) if taped else (run()[0], None)
        for old in part.leaves:
            if not old.ndim and id(old) in pairs:  # the bookkeeping of the whole parameter
                step.later[id(old)] = pairs.pop(id(old))
        step.write(pairs.values())
        return tape


class Rows:
    """A large parameter, for optimizers that do each leaf by itself: slices along its first axis.

    What is done to it is recorded, and done to one slice after the other, once more for each sum that is taken over all
    of them. What cannot be done so is done to the parameter as a whole.

    Args:
        owner: the optimizer and its state.
        state: the part of the state by parameter.
        key: the parameter.
        size: entries of a slice.
        flat: whether the optimizer does not look at shapes, so that a slice may be any neighbouring entries.
        named: whether the optimizer has to be told which parameter it is, and its shape, as one with a mask.
    """

    def __init__(self, owner: InPlace, state: Tree, key: Key, size: int, *, flat: bool, named: bool) -> None:
        self.key, self.size, self.flat, self.name = key, size, flat, (key,) if named else ()
        self.whole = Whole(owner, state, [key])
        own = self.whole.state if named else of_one(self.whole.state, key)
        self.shape = owner.layout.shapes[owner.layout.positions[key]]
        self.spec, self.leaves = optree.tree_structure(own), tree.leaves(own)
        self.kind = self.name, self.spec, *map(_about, self.leaves)
        self._cut: dict[torch.Size, tuple[list[slice], list[list[Tensor]]]] = {}

    def _cut_to(self, shape: torch.Size) -> tuple[list[slice], list[list[Tensor]]]:
        """Return slices, and the state of each."""
        if shape not in self._cut:
            rows, length = max(1, self.size // shape[1:].numel()), shape[0]
            slices = [slice(start, min(start + rows, length)) for start in range(0, length, rows)]
            leaves = [leaf.view(shape) if leaf.shape == self.shape else leaf for leaf in self.leaves]
            parts = [[leaf[at] if _is_cut(leaf, shape) else leaf for leaf in leaves] for at in slices]
            self._cut[shape] = slices, parts
        return self._cut[shape]

    def __call__(self, step: Step) -> None:
        if self.key not in step.grads:
            return
        values = {name: step.values.of(name, self.key) for name in step.values.by_name}
        recording = None
        if all(not x.ndim if isinstance(x, Tensor) else _is_number(x) for x in step.extras.values()):
            recording = step.recordings.find(self, step, values)
        moved = recording is not None and recording.flat and not step.params[self.key].is_contiguous()
        if recording is None or recording.tape is None or moved:
            self.whole(step)
        else:
            self._play(step, recording.tape, recording.flat, recording.numbers(step, values))

    def _play(self, step: Step, tape: Tape, flat: bool, numbers: list[Tensor]) -> None:
        shape = torch.Size([self.shape.numel()]) if flat else self.shape
        param, grad = step.params[self.key].view(shape), step.grads[self.key].reshape(shape)
        slices, parts = self._cut_to(shape)
        memory = tape.start([param, grad, *parts[0], *numbers])
        for number in range(tape.passes):
            for at, leaves in zip(slices, parts, strict=True):
                tape.play(memory, [param[at], grad[at], *leaves, *numbers], number, at)
            tape.finish(memory, number)
        for i, new in tape.common:
            old = self.leaves[i - 2]
            step.later[id(old)] = old, memory[new].clone()

    def record(
        self, step: Step, values: dict[str, Any], names: Sequence[str], numbers: list[Tensor]
    ) -> tuple[Program | None, bool]:
        """Return what a step does, of which some hypers are inputs, and whether that is for vectors.

        Args:
            step: the step.
            values: its hypers.
            names: those that are inputs.
            numbers: the extras and these.
        """
        flat = self.flat and step.params[self.key].is_contiguous()
        shape = torch.Size([self.shape.numel()]) if flat and not self.name else self.shape
        view = lambda x: x.view(shape) if x.shape == self.shape else x
        param, grad = step.params[self.key].view(shape), step.grads[self.key].reshape(shape)

        def run(given: list[Tensor]) -> list[Tensor]:
            param, grad, *rest = given
            state: Tree = optree.tree_unflatten(self.spec, rest[: len(self.leaves)])
            rest = rest[len(self.leaves) :]
            extras = dict(zip(step.extras, rest, strict=False))
            hypers = {**values, **dict(zip(names, rest[len(extras) :], strict=True))}
            for key in self.name:
                param, grad = {key: param}, {key: grad}
            new, state = step.tx.run(grad, state, param, hypers, **extras)
            return [*tree.leaves(new), given[1], *tree.leaves(state), *rest]

        inputs = [param, grad, *map(view, self.leaves), *numbers]
        program = record_by_rows(run, inputs, {i for i, x in enumerate(inputs) if _is_cut(x, shape)})
        vectors = program.flattened() if program is not None and flat else None
        return (program, False) if vectors is None else (vectors, True)


def _is_cut(leaf: Tensor, shape: torch.Size) -> bool:
    return leaf.ndim == len(shape) and leaf.shape[0] == shape[0]


class Recording(NamedTuple):
    """The tape of a step, or None if there can be none, whether it is for vectors, and the hypers it holds for."""

    tape: Tape | None
    flat: bool
    fixed: dict[str, Any]
    names: tuple[str, ...]  # the hypers that are inputs

    def numbers(self, step: Step, values: dict[str, Any]) -> list[Tensor]:
        """Return the inputs after parameter, gradient and state."""
        return [_as_tensor(x) for x in (*step.extras.values(), *map(values.get, self.names))]


class Recordings:
    """What was recorded of large parameters, for others like them and for later steps.

    A number is recorded as what it is at first. Once it has changed, or is another for another group, it is an input.
    """

    def __init__(self) -> None:
        self._known: dict[Any, list[Recording]] = {}
        self._tapes: list[tuple[Program, Tape]] = []
        self._varying: set[str] = set()

    def find(self, piece: Rows, step: Step, values: dict[str, Any]) -> Recording:
        """Return the recording for a parameter like this one, with these hypers; make it if there has been none."""
        tensors = step.params[piece.key], step.grads[piece.key]
        named = (*step.extras.items(), *values.items())
        kind = piece.kind, *map(_about, tensors), *[(name, _about(x)) for name, x in named]
        known = self._known.setdefault(kind, [])
        for recording in known:
            if all(same(values[name], value) for name, value in recording.fixed.items()):
                return recording
        before = known[-1].fixed if known else {}
        self._varying |= {name for name, x in before.items() if _is_number(x) and not same(x, values[name])}
        is_input = lambda name, x: not x.ndim if isinstance(x, Tensor) else _is_number(x) and name in self._varying
        names = tuple(name for name, x in values.items() if is_input(name, x))
        fixed = {name: x for name, x in values.items() if name not in names}
        new = Recording(None, False, {}, names)
        program, flat = piece.record(step, values, names, new.numbers(step, values))
        if program is not None:
            new = new._replace(tape=self._tape(program, step.room), flat=flat, fixed=fixed)
        known.append(new)
        del known[:-KEPT]
        return new

    def _tape(self, program: Program, room: Buffers) -> Tape:
        """Return the tape of a program, the same for programs that differ in nothing but the number of rows."""
        for known, tape in self._tapes:
            if program.is_like(known):
                return tape
        tape = Tape(program)
        tape.room = room
        self._tapes.append((program, tape))
        del self._tapes[: -KEPT * len(self._known)]
        return tape


def _about(x: Any) -> Any:
    return (x.dtype, x.shape, x.device) if isinstance(x, Tensor) else type(x)


def _is_number(x: Any) -> bool:
    return isinstance(x, (float, int)) and not isinstance(x, bool)


def _as_tensor(x: Any) -> Tensor:
    """Return a number as a tensor, as precise as it is."""
    dtype = torch.float64 if isinstance(x, float) else torch.int64
    return x if isinstance(x, Tensor) else torch.tensor(x, dtype=dtype, device="cpu")


_NEW: Any = object()


class _Cut(NamedTuple):
    """Neighbouring entries of a parameter."""

    at: slice
    state: Tree
    leaves: list[Tensor]


class Gathered:
    """Neighbouring small parameters, copied into a packed tree to be done together."""

    def __init__(self, owner: InPlace, state: Tree, field: int, start: int, stop: int) -> None:
        self.layout, take = owner.layout.part(field, start, stop)
        names = {i: key for key, i in self.layout.positions.items()}
        self.keys = [names[i] for i in self.layout.fields[0].indices]
        self.state = take(state)
        self.owned = {id(t) for node in _packed_nodes(self.state, self.layout) for t in node}
        self.params, self.grads = self.layout.zeros(), self.layout.zeros()
        self.param_views, self.grad_views = self._views(self.params), self._views(self.grads)

    def _views(self, node: Tree) -> list[Tensor]:
        return self.layout.fields[0].unpack(node[0], self.layout.shapes)

    def __call__(self, step: Step) -> None:
        given = [i for i, key in enumerate(self.keys) if key in step.grads]
        if not given:
            return
        own = [step.params[key] for key in self.keys]
        some = len(given) < len(own)
        if some:
            self.grads[0].zero_()
        _copy(self.param_views, own)
        _copy([self.grad_views[i] for i in given], [step.grads[self.keys[i]] for i in given])
        hypers = step.values.for_keys(self.keys, self.layout)
        new, new_state = step.tx.run(self.grads, self.state, self.params, hypers, **step.extras)
        if some:
            has_grad = self.layout.numbers({key: key in step.grads for key in self.keys})
            new_state = self.layout.choose(has_grad, new_state, self.state)
        pairs = pairs_of(self.state, new_state)
        step.write(pair for number, pair in pairs.items() if number in self.owned)
        step.later.update({number: pair for number, pair in pairs.items() if number not in self.owned})
        self.params[0].copy_(new[0])  # whose views are there already
        _copy([own[i] for i in given], [self.param_views[i] for i in given])


class Stack:
    """Small parameters of one shape, done together by ``vmap`` on copies: for optimizers that need their shape.

    One by one if that fails, because a rule looks at a value, which has many now.

    Args:
        owner: the optimizer and its state.
        state: the part of the state by parameter.
        keys: the parameters.
        least: so many must have a gradient.
    """

    def __init__(self, owner: InPlace, state: Tree, keys: Sequence[Key], least: int) -> None:
        self.keys, self.least = keys, least
        self.alone = [Whole(owner, state, [key]) for key in keys]
        own = [of_one(piece.state, key) for piece, key in zip(self.alone, keys, strict=True)]
        self.columns = [*zip(*map(tree.leaves, own), strict=True)]  # of every entry of the state those of all
        shared = [id(column[0]) in self.alone[0].shared for column in self.columns]
        self.kind = StateKind.of(own[0], [i if here else -1 for i, here in enumerate(shared)])
        self.together = True

    def __call__(self, step: Step) -> None:
        given = [i for i, key in enumerate(self.keys) if key in step.grads]
        if not (self.together and len(given) >= self.least and self._take(step, given)):
            for i in given:
                self.alone[i](step)

    def _take(self, step: Step, given: list[int]) -> bool:
        keys = [self.keys[i] for i in given]
        params = [step.params[key] for key in keys]
        columns = [[column[i] for i in given] for column in self.columns]
        own_or_first = zip(columns, self.kind.shared, strict=True)
        state = [torch.stack(column) if number < 0 else column[0] for column, number in own_or_first]
        hypers = step.values.for_keys(keys)
        by_key = {name: value for name, value in hypers.items() if isinstance(value, dict)}
        if any(tree.is_schedule(value) for values in by_key.values() for value in values.values()):
            return False  # read inside the optimizer, where schedules of several groups are no numbers yet
        differing = {name: stacked_numbers(values.values(), params[0]) for name, values in by_key.items()}
        stack, grads = torch.stack(params), torch.stack([step.grads[key] for key in keys])
        try:
            [(new, state)] = step_on_stacks(
                step.tx, [self.kind], [stack], [grads], [state], hypers, [differing], step.extras
            )
        except RuntimeError:
            self.together = False
            return False
        for column, entry, number in zip(columns, state, self.kind.shared, strict=True):
            if number >= 0:
                step.later[id(column[0])] = column[0], entry[0].clone()
            else:
                _copy(column, [*entry.unbind()])
        _copy(params, [*new.unbind()])
        return True


def _copy(to: list[Tensor], values: list[Tensor]) -> None:
    torch._foreach_copy_(to, values)  # pyright: ignore[reportPrivateImportUsage]


def _packed_nodes(state: Tree, layout: Any) -> list[Tree]:
    if tree.layout_of(state) is layout:
        return [state]
    return [node for _, child in tree.children(state) for node in _packed_nodes(child, layout)]
