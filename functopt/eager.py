"""Eager steps in place, piece by piece, so that only what a piece needs is ever held twice."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from functopt import tree
from functopt.base import Transform
from functopt.combine import split_chain
from functopt.compile import keep_freed_memory
from functopt.inplace import InPlace, Key, Values
from functopt.param_state import SHARED, entries, select
from functopt.tree import Tree

__all__ = ["EagerStep"]

PIECE = 1 << 18  # entries worked on at once: few enough for what a step computes on the way to stay in the cache
SMALL = 1 << 14  # parameters up to this size are gathered: their arithmetic costs less than calling it

Pairs = Iterable[tuple[Tensor, Tensor]]
Later = dict[int, tuple[Tensor, Tensor]]  # what is written when all pieces are done
Write = Callable[[Pairs], None]


class EagerStep:
    """Takes the steps of an :class:`InPlace`.

    Small parameters are gathered and done together; large ones alone, and if the optimizer is elementwise in slices
    that fit into the cache. What needs all gradients at once (a global norm) is done before the rest if it
    comes first in a chain. Otherwise everything is one piece.
    """

    def __init__(self, owner: InPlace, params: Mapping[Key, Tensor]) -> None:
        self.owner = owner
        keep_freed_memory()
        tx, state, _ = owner.at_step(Values({}, {}))
        self.head: tuple[Transform, Tree] | None = None
        self.pieces: list[_Piece] = []
        self.memory = {leaf.untyped_storage()._cdata for leaf in tree.leaves(owner.state)}
        if owner.packed and len(owner.layout.fields) == 1 and owner.layout.size <= PIECE:
            self.pieces = [_Gathered(owner, state, 0, 0, len(params))]
        elif not tx.links_beyond("element", "leaf", "matrix"):
            self.pieces = self._pieces(tx, state, params)
        elif (split := split_chain(tx, "element", "leaf", "matrix")) is not None:
            count, ahead, tx = split
            self.head = ahead, tree.unpack(state[:count])
            self.pieces = self._pieces(tx, state[count:], params)
        else:
            self.pieces = [_Whole(owner, tree.unpack(state), [*params])]
        self.tx = tx

    def __call__(self, params: Mapping[Key, Tensor], grads: Mapping[Key, Tensor], values: Values, extras: Any) -> None:
        """Take a step for the parameters that have a gradient."""
        _, _, values = self.owner.at_step(values)
        later: Later = {}
        if self.head is not None:
            ahead, state = self.head
            state = select(state, self.owner.keys, grads.keys())
            hypers = values.for_keys([*grads])
            grads, new = ahead._transform(dict(grads), state, {key: params[key] for key in grads}, hypers, **extras)
            self._write(_pairs(state, new).values())
        for piece in self.pieces:
            piece.step(self.tx, params, grads, values, extras, later, self._write)
        self._write(later.values())
        self.owner.count_step()

    def _write(self, pairs: Pairs) -> None:
        # an entry may move to another place, as in a history of gradients: all is read before anything is written
        settled = [(old, new.clone() if new.untyped_storage()._cdata in self.memory else new) for old, new in pairs]
        for old, new in settled:
            old.copy_(new)

    def _pieces(self, tx: Transform, state: Tree, params: Mapping[Key, Tensor]) -> list[_Piece]:
        owner, by_key = self.owner, tree.unpack(state)
        keys = {i: key for key, i in owner.layout.positions.items()}
        elementwise = not tx.links_beyond("element")
        pieces: list[_Piece] = []
        for number, field in enumerate(owner.layout.fields):
            start = 0
            while start < len(field.numels):
                stop = start
                while owner.packed and stop < len(field.numels) and field.numels[stop] <= SMALL:
                    if sum(field.numels[start : stop + 1]) > PIECE:
                        break
                    stop += 1
                if stop > start + 1:
                    pieces.append(_Gathered(owner, state, number, start, stop))
                    start = stop
                    continue
                key, size = keys[field.indices[start]], field.numels[start]
                if elementwise and params[key].ndim and params[key].is_contiguous():
                    cuts = range(0, max(size, 1), PIECE)
                    pieces += [_Slice(owner, by_key, key, at, min(at + PIECE, size)) for at in cuts]
                else:
                    pieces.append(_Whole(owner, by_key, [key]))
                start += 1
        return pieces


def _pairs(old: Tree, new: Tree) -> dict[int, tuple[Tensor, Tensor]]:
    both = zip(tree.leaves(old), tree.leaves(new), strict=True)
    return {id(a): (a, b) for a, b in both if a is not b}


class _Piece(Protocol):
    """Some of the parameters, and their part of the state, as views."""

    def step(
        self,
        tx: Transform,
        params: Mapping[Key, Tensor],
        grads: Mapping[Key, Tensor],
        values: Values,
        extras: Any,
        later: Later,
        write: Write,
    ) -> None:
        """Take the step; what belongs to several pieces goes into ``later``."""
        ...


class _Whole:
    """Some parameters as they are."""

    def __init__(self, owner: InPlace, state: Tree, keys: Sequence[Key]) -> None:
        self.keys = keys
        self.state = select(state, owner.keys, {*keys})
        self.shared = {id(leaf) for (who, _), leaf in entries(self.state, {*keys}).items() if who is SHARED}

    def step(self, tx, params, grads, values, extras, later, write) -> None:
        keys = [key for key in self.keys if key in grads]
        if not keys:
            return
        state = self.state if len(keys) == len(self.keys) else select(self.state, {*self.keys}, {*keys})
        own = {key: params[key] for key in keys}
        new, new_state = tx.run({key: grads[key] for key in keys}, state, own, values.for_keys(keys), **extras)
        pairs = _pairs(state, new_state)
        later.update({number: (old, value.clone()) for number, (old, value) in pairs.items() if number in self.shared})
        write(pair for number, pair in pairs.items() if number not in self.shared)
        for key, param in own.items():
            param.copy_(new[key])


class _Slice:
    """One parameter, or neighbouring entries of a large one, for elementwise optimizers: a tree that is one leaf."""

    def __init__(self, owner: InPlace, state: Tree, key: Key, start: int, stop: int) -> None:
        self.key, self.entries = key, slice(start, stop)
        shape = owner.layout.shapes[owner.layout.positions[key]]
        own = _only(select(state, owner.keys, {key}), key)
        self.state = tree.map(lambda t: t.view(-1)[self.entries] if t.shape == shape else t, own)
        self.cut = {id(leaf) for leaf in tree.leaves(self.state) if leaf.ndim}

    def step(self, tx, params, grads, values, extras, later, write) -> None:
        if self.key not in grads:
            return
        param, grad = params[self.key].view(-1)[self.entries], grads[self.key].reshape(-1)[self.entries]
        new, new_state = tx.run(grad, self.state, param, values.for_keys([self.key]), **extras)
        pairs = _pairs(self.state, new_state)
        write(pair for number, pair in pairs.items() if number in self.cut)
        # the rest is the bookkeeping of the whole parameter
        later.update({number: pair for number, pair in pairs.items() if number not in self.cut})
        param.copy_(new)


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

    def step(self, tx, params, grads, values, extras, later, write) -> None:
        given = [i for i, key in enumerate(self.keys) if key in grads]
        if not given:
            return
        own = [params[key] for key in self.keys]
        some = len(given) < len(own)
        if some:
            self.grads[0].zero_()
        _copy(self.param_views, own)
        _copy([self.grad_views[i] for i in given], [grads[self.keys[i]] for i in given])
        new, new_state = tx.run(self.grads, self.state, self.params, values.for_keys(self.keys, self.layout), **extras)
        if some:
            has_grad = self.layout.numbers({key: key in grads for key in self.keys})
            new_state = self.layout.choose(has_grad, new_state, self.state)
        pairs = _pairs(self.state, new_state)
        write(pair for number, pair in pairs.items() if number in self.owned)
        later.update({number: pair for number, pair in pairs.items() if number not in self.owned})
        out = self._views(new)
        _copy([own[i] for i in given], [out[i] for i in given])


def _copy(to: list[Tensor], values: list[Tensor]) -> None:
    torch._foreach_copy_(to, values)  # pyright: ignore[reportPrivateImportUsage]


def _packed_nodes(state: Tree, layout: Any) -> list[Tree]:
    if tree.layout_of(state) is layout:
        return [state]
    return [node for _, child in tree.children(state) for node in _packed_nodes(child, layout)]
