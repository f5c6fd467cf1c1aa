"""Eager steps in place, piece by piece, so that only what a piece needs is ever held twice."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import optree
import torch
from torch import Tensor

from functopt import tree
from functopt.allocator import keep_freed_memory
from functopt.base import Scope, Transform
from functopt.combine import split_chain
from functopt.inplace import InPlace, Key, Values, same
from functopt.numerics import accumulator_dtype
from functopt.param_state import SHARED, entries, select
from functopt.recording import record, record_with_sums
from functopt.sharded import assign, is_sharded, naming, storage
from functopt.tape import Buffers, Tape
from functopt.tree import Tree

__all__ = ["EagerStep", "shows_gaps"]

PIECE = 1 << 19  # entries worked on at once: few enough for what a step computes on the way to stay in the cache
ELSEWHERE = 1 << 22  # the same where starting an operation costs more, as on a GPU
SAMPLE = 1 << 14  # entries with which a step is recorded
SAMPLES_OF_LEAF = (1021, 509)  # the same where sums are taken over a leaf; lengths that nobody means by something else
FEW = 4  # parameters of one shape from which on they are done together
KEPT = 8  # recordings from step to step: those of the hypers that groups have now
SMALL = 1 << 14  # parameters up to this size are gathered: their arithmetic costs less than calling it

Pairs = Iterable[tuple[Tensor, Tensor]]
Later = dict[int, tuple[Tensor, Tensor]]  # what is written when all pieces are done


class _Step(NamedTuple):
    """What the pieces need to know of one step."""

    tx: Transform
    params: Mapping[Key, Tensor]
    grads: Mapping[Key, Tensor]
    values: Values
    extras: Any
    later: Later
    tapes: list[tuple[Any, Tape | None]]  # what was recorded, with the hypers and dtypes that it holds for
    memory: set[int]  # the storages of the state
    room: Buffers  # for what is computed on the way
    common: tuple[Tensor, ...] = ()  # 0-d tensors among the extras that are others at every step

    def write(self, pairs: Pairs) -> None:
        """Put new tensors where the old ones are."""
        # an entry may move to another place, as in a history of gradients: all is read before anything is written
        settled = [(old, new.clone() if storage(new) in self.memory else new) for old, new in pairs]
        for old, new in settled:
            assign(old, new)


def shows_gaps(tx: Transform, state: Tree) -> bool:
    """Tell whether it matters that packed, what has no gradient takes part with zeros.

    It does to a norm of all updates, unless it is the first link, which sees the zeros themselves, and nothing else:
    not if it sums over a state too.
    """
    split = split_chain(tx, "element", "leaf")
    if not tx.links_beyond("element", "leaf"):
        return False
    return split is None or split[0] > 1 or state[0] != ()


class _Route(NamedTuple):
    """How a step is done: what comes before, with its state, and then the rest piece by piece."""

    head: tuple[Transform, Tree] | None
    tx: Transform
    pieces: list[_Piece]
    by_norm: bool = False  # whether the pieces need the norm of all gradients


class EagerStep:
    """Takes the steps of an :class:`InPlace`.

    Small parameters are gathered and done together, those of one shape if the optimizer needs their shape; large ones
    alone, and if the optimizer is elementwise in slices that fit into the cache. What needs all gradients at once is
    done before the rest if it comes first in a chain; of a link that needs no more of them than their norm, only that.
    Otherwise everything is one piece.
    """

    def __init__(self, owner: InPlace, params: Mapping[Key, Tensor]) -> None:
        self.owner = owner
        keep_freed_memory()
        self.memory = {storage(leaf) for leaf in tree.leaves(owner.state)}
        self.tapes: list[tuple[Any, Tape | None]] = []
        self.room = Buffers(min(PIECE, max(param.numel() for param in params.values())))
        tx, state, _ = owner.at_step(Values({}, {}))
        small = owner.packed and len(owner.layout.fields) == 1 and owner.layout.size <= PIECE
        if small and not (owner.on_shards and tx.links_beyond("element")):
            self.route = _Route(None, tx, [_Gathered(owner, state, 0, 0, len(params))])
        else:
            self.route = self._piecewise(params)
        self.with_gaps: _Route | None = None if small and shows_gaps(tx, state) else self.route

    def __call__(self, params: Mapping[Key, Tensor], grads: Mapping[Key, Tensor], values: Values, extras: Any) -> None:
        """Take a step for the parameters that have a gradient.

        Raises:
            NotImplementedError: parameters are sharded, and a link does what cannot be done to them.
        """
        if not self.owner.shardings:
            return self._take(params, grads, values, extras)
        with naming(self.owner.tx.links_beyond("element", "tree", "leaf")):
            return self._take(params, grads, values, extras)

    def _take(self, params: Mapping[Key, Tensor], grads: Mapping[Key, Tensor], values: Values, extras: Any) -> None:
        _, _, values = self.owner.at_step(values)
        route = self.route
        if len(grads) < len(params):
            route = self.with_gaps = self.with_gaps or self._piecewise(params)
        # extras are baked into what is recorded, but for a norm of ours; hypers are compared with those at hand
        tapes = [] if extras else self.tapes
        step = _Step(route.tx, params, grads, values, extras, {}, tapes, self.memory, self.room)
        if route.head is not None:
            ahead, state = route.head
            state = select(state, self.owner.keys, grads.keys())
            hypers = values.for_keys([*grads])
            given, own = dict(grads), {key: params[key] for key in grads}
            grads, new = ahead._transform(given, state, own, hypers, **{"grad": given, **extras})
            step.write(_pairs(state, new).values())
            step = step._replace(grads=grads)
        if route.by_norm:
            norm = tree.norm(dict(grads))
            step = step._replace(extras={"updates_norm": norm, **extras}, common=(norm,))
        if self.owner.on_shards:
            step = step._replace(params=self.owner.here(params), grads=self.owner.here(grads))
        for piece in route.pieces:
            piece(step)
        step.write(step.later.values())
        del self.tapes[:-KEPT]
        self.owner.count_step()

    def _piecewise(self, params: Mapping[Key, Tensor]) -> _Route:
        owner = self.owner
        tx, state, _ = owner.at_step(Values({}, {}))
        scopes: tuple[Scope, ...] = ("element",) if owner.on_shards else ("element", "leaf", "matrix")
        if not tx.links_beyond(*scopes):
            return _Route(None, tx, self._pieces(tx, state, params, not tx.links_beyond("element")))
        split = split_chain(tx, *scopes)
        if split is None:
            return _Route(None, tx, [_Whole(owner, tree.unpack(state), [*params])])
        count, ahead, rest = split
        elementwise = not rest.links_beyond("element")
        if count == 1 and "updates_norm" in ahead._call[1][0]._takes:  # pyright: ignore[reportOptionalSubscript]
            return _Route(None, tx, self._pieces(tx, state, params, elementwise), by_norm=True)
        return _Route((ahead, owner.whole(state[:count])), rest, self._pieces(rest, state[count:], params, elementwise))

    def _pieces(self, tx: Transform, state: Tree, params: Mapping[Key, Tensor], elementwise: bool) -> list[_Piece]:
        owner, by_key = self.owner, tree.unpack(state)
        by_leaf, least = owner.packed and _knows_no_names(tx), max(SMALL, *SAMPLES_OF_LEAF)
        keys = {i: key for key, i in owner.layout.positions.items()}
        params = owner.here(params) if owner.on_shards else params
        stacks = [] if owner.packed or not _knows_no_names(tx) else _alike(params)
        in_stacks = {key for stack in stacks for key in stack}
        pieces: list[_Piece] = [_Stack(owner, by_key, stack) for stack in stacks]
        for number, field in enumerate(owner.layout.fields):
            start = 0
            while start < len(field.numels):
                if keys[field.indices[start]] in in_stacks:
                    start += 1
                    continue
                stop = start
                while owner.packed and stop < len(field.numels) and field.numels[stop] <= SMALL:
                    if sum(field.numels[start : stop + 1]) > PIECE:
                        break
                    stop += 1
                if stop > start + 1:
                    pieces.append(_Gathered(owner, state, number, start, stop))
                    start = stop
                    continue
                key = keys[field.indices[start]]
                param = params[key]
                in_slices = elementwise or (by_leaf and param.device.type == "cpu" and param.numel() > least)
                if in_slices and param.ndim and param.is_contiguous() and not is_sharded(param):
                    size = PIECE if param.device.type == "cpu" else ELSEWHERE
                    kind = _Slices if elementwise else _SlicesOfLeaf
                    pieces.append(kind(owner, by_key, key, size))
                else:
                    pieces.append(_Whole(owner, by_key, [key]))
                start += 1
        return pieces


def _pairs(old: Tree, new: Tree) -> dict[int, tuple[Tensor, Tensor]]:
    both = zip(tree.leaves(old), tree.leaves(new), strict=True)
    return {id(a): (a, b) for a, b in both if a is not b}


class _Piece(Protocol):
    """Some of the parameters, and their part of the state, as views."""

    def __call__(self, step: _Step) -> None:
        """Take the step; what belongs to several pieces goes into ``step.later``."""
        ...


class _Whole:
    """Some parameters as they are."""

    def __init__(self, owner: InPlace, state: Tree, keys: Sequence[Key]) -> None:
        self.keys = keys
        self.state = select(state, owner.keys, {*keys})
        self.shared = {id(leaf) for (who, _), leaf in entries(self.state, {*keys}).items() if who is SHARED}

    def __call__(self, step: _Step) -> None:
        keys = [key for key in self.keys if key in step.grads]
        if not keys:
            return
        state = self.state if len(keys) == len(self.keys) else select(self.state, {*self.keys}, {*keys})
        own, grads = {key: step.params[key] for key in keys}, {key: step.grads[key] for key in keys}
        new, new_state = step.tx.run(grads, state, own, step.values.for_keys(keys), **step.extras)
        pairs = _pairs(state, new_state)
        for number in self.shared & pairs.keys():
            old, value = pairs.pop(number)
            step.later[number] = old, value.clone()
        step.write(pairs.values())
        for key, param in own.items():
            assign(param, new[key])


class _Slices:
    """A large parameter, for elementwise optimizers: slices of neighbouring entries, each a tree that is one leaf.

    What is done to the first one is recorded and then done to the others, if it can be.
    """

    def __init__(self, owner: InPlace, state: Tree, key: Key, size: int) -> None:
        self.key, place = key, owner.layout.positions[key]
        self.shape, self.size = owner.layout.shapes[place], size
        self.state = _only(select(state, owner.keys, {key}), key)
        self.slices = self._cut(0)
        self.after_sample: list[_Cut] | None = None

    def _cut(self, start: int) -> list[_Cut]:
        numel = self.shape.numel()
        return [self._part(at, min(at + self.size, numel)) for at in range(start, max(numel, start + 1), self.size)]

    def _part(self, start: int, stop: int) -> _Cut:
        at = slice(start, stop)
        state = tree.map(lambda t: t.view(-1)[at] if t.shape == self.shape else t, self.state)
        return _Cut(at, state, tree.leaves(state))

    def __call__(self, step: _Step) -> None:
        if self.key not in step.grads:
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

    def _known(self, step: _Step, values: dict[str, Any], param: Tensor, grad: Tensor) -> Tape | None:
        """Return the tape of a parameter like this one at this step, ``_NEW`` if there has been none."""
        kinds = self._kinds(param, grad, step.common)
        alike = (
            tape
            for (known, known_kinds), tape in step.tapes
            if kinds == known_kinds and all(same(value, known[name]) for name, value in values.items())
        )
        return next(alike, _NEW)

    def _note(self, step: _Step, values: dict[str, Any], param: Tensor, grad: Tensor, tape: Tape | None) -> Tape | None:
        if tape is not None:
            tape.room = step.room
        step.tapes.append(((values, self._kinds(param, grad, step.common)), tape))
        return tape

    def _play(self, step: _Step, tape: Tape, slices: list[_Cut], param: Tensor, grad: Tensor) -> None:
        memory = tape.start([param, grad, *slices[0].leaves, *step.common], param.numel())
        for number in range(tape.passes):
            for at, _, leaves in slices:
                tape.play(memory, [param[at], grad[at], *leaves, *step.common], number)
            tape.finish(memory, number)
        leaves = [param, grad, *slices[0].leaves]
        step.later.update({id(leaves[i]): (leaves[i], memory[new]) for i, new in tape.scalars})

    def _by_itself(
        self, step: _Step, values: dict[str, Any], part: _Cut, param: Tensor, grad: Tensor, *, taped: bool = False
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


class _SlicesOfLeaf(_Slices):
    """The same for optimizers that take sums over a leaf: its slices are gone through once more for each of them.

    What cannot be done so is done to the leaf as a whole.
    """

    def __init__(self, owner: InPlace, state: Tree, key: Key, size: int) -> None:
        super().__init__(owner, state, key, size)
        self.whole = _Whole(owner, state, [key])
        numel = self.shape.numel()
        self.samples = [self._part(0, min(sample, numel)) for sample in SAMPLES_OF_LEAF]

    def __call__(self, step: _Step) -> None:
        if self.key not in step.grads:
            return
        param, grad = step.params[self.key].view(-1), step.grads[self.key].reshape(-1)
        values = {name: step.values.of(name, self.key) for name in step.values.by_name}
        tape = self._known(step, values, param, grad)
        if tape is _NEW:
            tape = self._note(step, values, param, grad, self._record(step, values, param, grad))
        if tape is None:
            self.whole(step)
        else:
            self._play(step, tape, self.slices, param, grad)

    def _record(self, step: _Step, values: dict[str, Any], param: Tensor, grad: Tensor) -> Tape | None:
        spec = optree.tree_structure(self.samples[0].state)

        def run(inputs: list[Tensor]) -> list[Tensor]:
            state: Tree = optree.tree_unflatten(spec, inputs[2 : 2 + spec.num_leaves])
            new, state = step.tx.run(inputs[1], state, inputs[0], values, **step.extras)
            return [new, inputs[1], *optree.tree_leaves(state), *step.common]

        cut = lambda part: [param[part.at], grad[part.at], *part.leaves, *step.common]
        return record_with_sums(run, [cut(part) for part in self.samples])


def _knows_no_names(tx: Transform) -> bool:
    """Tell whether an optimizer is made of numbers alone: it does the same to a leaf without the tree around it.

    A mask, or a function of the parameters, would have to be told which leaf it is, or its shape.
    """
    if tx._call is None:
        return False
    _, args, kwargs = tx._call
    arguments = [*args, *(value for name, value in kwargs.items() if name not in tx.hypers)]
    return all(
        _knows_no_names(argument) if isinstance(argument, Transform) else isinstance(argument, (float, int, str))
        for argument in arguments
    )


_NEW: Any = object()


class _Cut(NamedTuple):
    """Neighbouring entries of a parameter."""

    at: slice
    state: Tree
    leaves: list[Tensor]


def _only(state: Tree, key: Key) -> Tree:
    """Return the state of one parameter without the dicts by key around its entries."""
    if isinstance(state, dict) and state.keys() == {key}:
        return state[key]
    parts = tree.children(state)
    return tree.rebuild(state, [k for k, _ in parts], [_only(part, key) for _, part in parts]) if parts else state


class _Gathered:
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

    def __call__(self, step: _Step) -> None:
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
        pairs = _pairs(self.state, new_state)
        step.write(pair for number, pair in pairs.items() if number in self.owned)
        step.later.update({number: pair for number, pair in pairs.items() if number not in self.owned})
        self.params[0].copy_(new[0])  # whose views are there already
        _copy([own[i] for i in given], [self.param_views[i] for i in given])


class _Stack:
    """Small parameters of one shape, done together by ``vmap`` on copies: for optimizers that need their shape.

    One by one if that fails, because a rule looks at a value, which has many now.
    """

    def __init__(self, owner: InPlace, state: Tree, keys: Sequence[Key]) -> None:
        self.keys = keys
        self.alone = [_Whole(owner, state, [key]) for key in keys]
        own = [_only(piece.state, key) for piece, key in zip(self.alone, keys, strict=True)]
        self.spec = optree.tree_structure(own[0])
        self.columns = [*zip(*map(tree.leaves, own), strict=True)]  # of every entry of the state those of all
        self.shared = [id(column[0]) in self.alone[0].shared for column in self.columns]
        self.together = True

    def __call__(self, step: _Step) -> None:
        given = [i for i, key in enumerate(self.keys) if key in step.grads]
        if not (self.together and len(given) >= FEW and self._take(step, given)):
            for i in given:
                self.alone[i](step)

    def _take(self, step: _Step, given: list[int]) -> bool:
        keys = [self.keys[i] for i in given]
        params = [step.params[key] for key in keys]
        columns = [[column[i] for i in given] for column in self.columns]
        stack = lambda column, shared: column[0] if shared else torch.stack(column)
        entries = [*map(stack, columns, self.shared)]
        hypers = step.values.for_keys(keys)
        by_key = {name: value for name, value in hypers.items() if isinstance(value, dict)}
        if any(tree.is_schedule(value) for values in by_key.values() for value in values.values()):
            return False  # read inside the optimizer, where schedules of several groups are no numbers yet
        differing = {name: _numbers(values, params[0]) for name, values in by_key.items()}

        def one(param: Tensor, grad: Tensor, entries: list[Tensor], own: dict[str, Tensor]) -> tuple[Tensor, ...]:
            state: Tree = optree.tree_unflatten(self.spec, entries)
            new, state = step.tx.run(grad, state, param, {**hypers, **own}, **step.extras)
            return new, *tree.leaves(state)

        in_dims = (0, 0, [None if shared else 0 for shared in self.shared], dict.fromkeys(differing, 0))
        inputs = torch.stack(params), torch.stack([step.grads[key] for key in keys]), entries, differing
        try:
            new, *entries = torch.func.vmap(one, in_dims)(*inputs)
        except RuntimeError:
            self.together = False
            return False
        for column, entry, shared in zip(columns, entries, self.shared, strict=True):
            if shared:
                step.later[id(column[0])] = column[0], entry[0].clone()
            else:
                _copy(column, [*entry.unbind()])
        _copy(params, [*new.unbind()])
        return True


def _alike(params: Mapping[Key, Tensor]) -> list[list[Key]]:
    """Return the small parameters of one shape, so many at a time as fit into the cache."""
    kinds: dict[Any, list[Key]] = {}
    for key, param in params.items():
        if param.numel() <= SMALL and not param.is_complex() and not is_sharded(param):
            kinds.setdefault((param.shape, param.dtype, param.device), []).append(key)
    sizes = {kind: max(FEW, PIECE // max(1, kind[0].numel())) for kind in kinds}
    stacks = [keys[i : i + sizes[kind]] for kind, keys in kinds.items() for i in range(0, len(keys), sizes[kind])]
    return [stack for stack in stacks if len(stack) >= FEW]


def _numbers(values: Mapping[Key, Any], like: Tensor) -> Tensor:
    """Return one hyper of several parameters as one tensor."""
    dtype = accumulator_dtype(like.dtype)
    return torch.stack([torch.as_tensor(value, dtype=dtype, device=like.device) for value in values.values()])


def _copy(to: list[Tensor], values: list[Tensor]) -> None:
    torch._foreach_copy_(to, values)  # pyright: ignore[reportPrivateImportUsage]


def _packed_nodes(state: Tree, layout: Any) -> list[Tree]:
    if tree.layout_of(state) is layout:
        return [state]
    return [node for _, child in tree.children(state) for node in _packed_nodes(child, layout)]
