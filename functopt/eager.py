"""Eager steps in place, piece by piece, so that only what a piece needs is ever held twice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from functopt import tree
from functopt.allocator import keep_freed_memory
from functopt.base import Scope, Transform
from functopt.closure import takes_extra
from functopt.combine import split_chain
from functopt.inplace import InPlace, Key, Values
from functopt.param_state import select
from functopt.pieces import KEPT, Gathered, Piece, Recordings, Rows, Slices, Stack, Step, Whole, pairs_of
from functopt.sharded import is_sharded, naming, storage
from functopt.stacks import alike, is_plain
from functopt.tape import Buffers, Tape
from functopt.tree import Tree

__all__ = ["EagerStep", "shows_gaps"]

PIECE = 1 << 19  # entries worked on at once: few enough for what a step computes on the way to stay in the cache
ELSEWHERE = 1 << 22  # the same where starting an operation costs more, as on a GPU
FEW = 4  # parameters of one shape from which on they are done together
SMALL = 1 << 14  # parameters up to this size are gathered: their arithmetic costs less than calling it


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
    pieces: list[Piece]
    by_norm: bool = False  # whether the pieces need the norm of all gradients


class EagerStep:
    """Takes the steps of an :class:`InPlace`.

    Small parameters are gathered and done together, those of one shape if the optimizer needs their shape; large ones
    alone, in slices if what is done to them can be cut: into any neighbouring entries, or along the first axis if rows
    and columns matter. What needs all gradients at once is done before the rest if it comes first in a chain; of a link
    that needs no more of them than their norm, only that. Otherwise everything is one piece.
    """

    def __init__(self, owner: InPlace, params: Mapping[Key, Tensor]) -> None:
        self.owner = owner
        keep_freed_memory()
        self.memory = {storage(leaf) for leaf in tree.leaves(owner.state)}
        self.tapes: list[tuple[Any, Tape | None]] = []
        self.recordings = Recordings()
        self.used: dict[str, bool] = {}  # extras, by name
        self.room = Buffers(min(PIECE, max(param.numel() for param in params.values())))
        tx, state, _ = owner.at_step(Values({}, {}))
        small = owner.packed and len(owner.layout.fields) == 1 and owner.layout.size <= PIECE
        if small and not (owner.on_shards and tx.links_beyond("element")):
            self.route = _Route(None, tx, [Gathered(owner, state, 0, 0, len(params))])
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
        extras = {name: extra for name, extra in extras.items() if self._takes(name)}
        # extras are baked into what is recorded, but for a norm of ours; hypers are compared with those at hand
        tapes = [] if extras else self.tapes
        step = Step(route.tx, params, grads, values, extras, {}, tapes, self.recordings, self.memory, self.room)
        if route.head is not None:
            ahead, state = route.head
            state = select(state, self.owner.keys, grads.keys())
            hypers = values.for_keys([*grads])
            given, own = dict(grads), {key: params[key] for key in grads}
            grads, new = ahead._transform(given, state, own, hypers, **{"grad": given, **extras})
            step.write(pairs_of(state, new).values())
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

    def _takes(self, name: str) -> bool:
        """Tell whether the optimizer may use an extra."""
        if name not in self.used:
            tx = self.owner.tx
            self.used[name] = not is_plain(tx, but_for_masks=True) or takes_extra(tx, name)
        return self.used[name]

    def _piecewise(self, params: Mapping[Key, Tensor]) -> _Route:
        owner = self.owner
        tx, state, _ = owner.at_step(Values({}, {}))
        scopes: tuple[Scope, ...] = ("element",) if owner.on_shards else ("element", "leaf", "matrix")
        if not tx.links_beyond(*scopes):
            return _Route(None, tx, self._pieces(tx, state, params, not tx.links_beyond("element")))
        split = split_chain(tx, *scopes)
        if split is None:
            return _Route(None, tx, [Whole(owner, tree.unpack(state), [*params])])
        count, ahead, rest = split
        elementwise = not rest.links_beyond("element")
        if count == 1 and "updates_norm" in ahead._call[1][0]._takes:  # pyright: ignore[reportOptionalSubscript]
            return _Route(None, tx, self._pieces(tx, state, params, elementwise), by_norm=True)
        return _Route((ahead, owner.whole(state[:count])), rest, self._pieces(rest, state[count:], params, elementwise))

    def _pieces(self, tx: Transform, state: Tree, params: Mapping[Key, Tensor], elementwise: bool) -> list[Piece]:
        owner, by_key = self.owner, tree.unpack(state)
        in_rows, named = not elementwise and is_plain(tx, but_for_masks=True), not is_plain(tx)
        flat = not tx.links_beyond("element", "leaf")
        keys = {i: key for key, i in owner.layout.positions.items()}
        params = owner.here(params) if owner.on_shards else params
        stacks = [] if owner.packed or named else _small_stacks(params)
        in_stacks = {key for stack in stacks for key in stack}
        pieces: list[Piece] = [Stack(owner, by_key, stack, FEW) for stack in stacks]
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
                    pieces.append(Gathered(owner, state, number, start, stop))
                    start = stop
                    continue
                key = keys[field.indices[start]]
                param = params[key]
                size, whole = PIECE if param.device.type == "cpu" else ELSEWHERE, not is_sharded(param)
                if elementwise and whole and param.ndim and param.is_contiguous():
                    pieces.append(Slices(owner, by_key, key, size))
                elif in_rows and whole and _is_large(param) and (len(param) > 1 or (flat and not named)):
                    pieces.append(Rows(owner, by_key, key, size, flat=flat and param.is_contiguous(), named=named))
                else:
                    pieces.append(Whole(owner, by_key, [key]))
                start += 1
        return pieces


def _is_large(param: Tensor) -> bool:
    """Tell whether a parameter has axes, and is so large that it is cut if that can be done."""
    plain = param.device.type == "cpu" and not param.is_complex() and type(param.data) is Tensor
    return plain and param.ndim > 0 and param.numel() > SMALL


def _small_stacks(params: Mapping[Key, Tensor]) -> list[list[Key]]:
    """Return the small parameters of one shape, so many at a time as fit into the cache."""
    small = lambda param: param.numel() <= SMALL and not param.is_complex() and not is_sharded(param)
    kinds = alike({key: param for key, param in params.items() if small(param)})
    sizes = {kind: max(FEW, PIECE // max(1, kind[0].numel())) for kind in kinds}
    stacks = [keys[i : i + sizes[kind]] for kind, keys in kinds.items() for i in range(0, len(keys), sizes[kind])]
    return [stack for stack in stacks if len(stack) >= FEW]
