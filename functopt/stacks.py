"""Parameters of one shape as one tensor, along a new first axis: for rules that need the shape of a leaf."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor

from functopt import tree
from functopt.base import Transform
from functopt.hypers import Hypers
from functopt.inplace import InPlace, Key, Values
from functopt.numerics import accumulator_dtype
from functopt.param_state import SHARED, entries, map_entries, select
from functopt.tree import Tree

__all__ = ["Stacks", "StateKind", "alike", "is_plain", "of_one", "stacked_numbers", "step_on_stacks"]


class StateKind(NamedTuple):
    """What the state of one of the parameters of a stack looks like."""

    places: Tree  # with the numbers of its leaves as leaves
    shared: tuple[int, ...]  # for each of its leaves the number of what all parameters share, or -1

    @classmethod
    def of(cls, state: Tree, shared: Sequence[int]) -> StateKind:
        """Return the kind of a state."""
        spec = optree.tree_structure(state)
        return cls(optree.tree_unflatten(spec, range(spec.num_leaves)), tuple(shared))


def step_on_stacks(
    tx: Transform,
    kinds: Sequence[StateKind],
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    states: Sequence[Sequence[Tensor]],
    hypers: Hypers,
    own: Sequence[Mapping[str, Tensor]],
    extras: Mapping[str, Any],
) -> list[tuple[Tensor, list[Tensor]]]:
    """Take a step for stacks of one length, by one ``vmap``, in which each is one parameter.

    Args:
        tx: an optimizer that does each leaf by itself.
        kinds: of every stack.
        params: the stacks.
        grads: their gradients.
        states: the leaves of their states, stacked, but for those that are shared.
        hypers: what all have in common.
        own: of every stack, the hypers in which its parameters differ.
        extras: what some links need besides.

    Returns:
        The new parameters and states, with a first axis for what is shared too.
    """
    rows, in_dims = [], []
    for kind, param, grad, state, mine in zip(kinds, params, grads, states, own, strict=True):
        rows += [param, grad, *state, *mine.values()]
        in_dims += [0, 0, *(0 if number < 0 else None for number in kind.shared), *[0] * len(mine)]

    # by way of flat tuples: what vmap does with trees takes long to trace
    def one(*leaves: Tensor) -> tuple[Tensor, ...]:
        rest, done = [*leaves], []
        for kind, mine in zip(kinds, own, strict=True):
            (param, grad), rest = rest[:2], rest[2:]
            state, rest = rest[: len(kind.shared)], rest[len(kind.shared) :]
            values, rest = dict(zip(mine, rest[: len(mine)], strict=True)), rest[len(mine) :]
            filled: Tree = optree.tree_map(lambda i, state=state: state[i], kind.places)
            new, filled = tx.run(grad, filled, param, {**hypers, **values}, **extras)
            done += [new, *tree.leaves(filled)]
        return tuple(done)

    rest, out = torch.func.vmap(one, tuple(in_dims))(*rows), []
    for kind in kinds:
        out.append((rest[0], [*rest[1 : 1 + len(kind.shared)]]))
        rest = rest[1 + len(kind.shared) :]
    return out


_PLAIN, _MASKS = (float, int, str), ("mask", "freeze_mask", "param_labels")


def is_plain(tx: Transform, *, but_for_masks: bool = False) -> bool:
    """Tell whether an optimizer is made of numbers alone: it does the same to a leaf without the tree around it.

    A mask would have to be told which leaf it is, or its shape; any other function might be told anything.
    """
    if tx._call is None:
        return False

    def plain(x: Any) -> bool:
        if but_for_masks and isinstance(x, (dict, list, tuple)):
            return all(map(plain, x.values() if isinstance(x, dict) else x))
        return is_plain(x, but_for_masks=but_for_masks) if isinstance(x, Transform) else isinstance(x, _PLAIN)

    _, args, kwargs = tx._call
    aside = {*tx.hypers, *(_MASKS if but_for_masks else ())}
    return all(map(plain, (*args, *(x for name, x in kwargs.items() if name not in aside))))


def of_one(state: Tree, key: Key) -> Tree:
    """Return the state of one parameter without the dicts by key around its entries."""
    if isinstance(state, dict) and state.keys() == {key}:
        return state[key]
    parts = tree.children(state)
    return tree.rebuild(state, [k for k, _ in parts], [of_one(part, key) for _, part in parts]) if parts else state


def stacked_numbers(values: Iterable[Any], like: Tensor) -> Tensor:
    """Return one hyper of several parameters as one tensor."""
    dtype = accumulator_dtype(like.dtype)
    return torch.stack([torch.as_tensor(value, dtype=dtype, device=like.device) for value in values])


class Stacks:
    """Parameters, gradients and state of an :class:`InPlace` in stacks, of which what was there becomes views.

    Args:
        owner: the optimizer and its state.
        tx: the optimizer without its step counter.
        state: its state.
        params: the parameters.
    """

    def __init__(self, owner: InPlace, tx: Transform, state: Tree, params: Mapping[Key, Tensor]) -> None:
        self.tx, self.keys = tx, [*alike(params).values()]
        self.params = [torch.stack([params[key].detach() for key in keys]) for keys in self.keys]
        self.grads = [torch.zeros_like(stack) for stack in self.params]
        self.param_views, self.grad_views = self._by_key(self.params), self._by_key(self.grads)
        shared = {id(leaf): leaf for (who, _), leaf in entries(state, owner.keys).items() if who is SHARED}
        number = {place: i for i, place in enumerate(shared)}
        self.kinds: list[StateKind] = []
        self.states: list[list[Tensor]] = []  # but for what is shared
        self.shared = [*shared.values()]
        views: dict[int, Tensor] = {}
        for keys in self.keys:
            own = [of_one(select(state, owner.keys, {key}), key) for key in keys]
            columns = [*zip(*map(tree.leaves, own), strict=True)]  # of every entry of the state those of all
            kind = StateKind.of(own[0], [number.get(id(column[0]), -1) for column in columns])
            own_columns = [column for column, i in zip(columns, kind.shared, strict=True) if i < 0]
            stacks = [torch.stack(column) for column in own_columns]
            for column, stack in zip(own_columns, stacks, strict=True):
                views.update(zip(map(id, column), stack.unbind(), strict=True))
            self.kinds.append(kind)
            self.states.append(stacks)
        self._views = views

    @classmethod
    def of(cls, owner: InPlace, tx: Transform, state: Tree, params: Mapping[Key, Tensor]) -> Stacks | None:
        """Return the stacks if the optimizer can be run on them: it does each leaf by itself, and looks at no value."""
        if tx.links_beyond("element", "leaf", "matrix") or not is_plain(tx) or owner.shardings or tx._paced:
            return None
        if any(param.is_complex() for param in params.values()):
            return None
        stacks = cls(owner, tx, state, params)
        if not stacks._runs():
            return None
        owner.state = map_entries(lambda _, __, leaf: stacks._views.get(id(leaf), leaf), owner.state, owner.keys)
        stacks._views = {}
        return stacks

    def _runs(self) -> bool:
        stand_in = lambda x: torch.empty_like(x, device="meta", requires_grad=False)
        params, grads, state = tree.map(stand_in, (self.params, self.grads, (self.states, self.shared)))
        hypers = {name: torch.empty((), device="meta") for name in self.tx.hypers}
        try:
            self.update(params, state, grads, (hypers, [{} for _ in self.keys]), (), {})
        except Exception:  # whatever it is, it shows where each parameter is done by itself
            return False
        return True

    def _by_key(self, stacks: list[Tensor]) -> dict[Key, Tensor]:
        both = zip(self.keys, stacks, strict=True)
        return {key: view for keys, stack in both for key, view in zip(keys, stack.unbind(), strict=True)}

    def hypers(self, values: Values, differing: set[str]) -> tuple[Hypers, list[dict[str, Tensor]]]:
        """Return the hypers that all share, and those that differ, or once did, for the parameters of every stack."""
        by_name = values.for_keys([key for keys in self.keys for key in keys])
        differing |= {name for name, value in by_name.items() if isinstance(value, dict)}
        numbers = lambda name, keys: [values.of(name, key) for key in keys]
        own = [
            {name: stacked_numbers(numbers(name, keys), stack) for name in by_name if name in differing}
            for keys, stack in zip(self.keys, self.params, strict=True)
        ]
        return {name: value for name, value in by_name.items() if name not in differing}, own

    def given(self, grads: Mapping[Key, Tensor]) -> list[Tensor]:
        """Return which parameters have a gradient."""
        both = zip(self.keys, self.params, strict=True)
        return [torch.tensor([key in grads for key in keys], device=stack.device) for keys, stack in both]

    def update(
        self, params: Sequence[Tensor], state: Tree, grads: Sequence[Tensor], hypers: Any, given: Any, extras: Any
    ) -> tuple[list[Tensor], Tree]:
        """Take a step, as a pure function of the stacks."""
        (states, shared), (common, own) = state, hypers
        new_params, new_states, new_shared = [*params], [*states], [*shared]
        lengths: dict[int, list[int]] = {}
        for i, keys in enumerate(self.keys):
            lengths.setdefault(len(keys), []).append(i)
        for some in lengths.values():
            filled = [self._filled(self.kinds[i], states[i], shared) for i in some]
            take = lambda values, some=some: [values[i] for i in some]
            done = step_on_stacks(
                self.tx, take(self.kinds), take(params), take(grads), filled, common, take(own), extras
            )
            for i, (param, leaves) in zip(some, done, strict=True):
                numbers = self.kinds[i].shared
                for leaf, number in zip(leaves, numbers, strict=True):
                    if number >= 0:
                        new_shared[number] = leaf[0]
                rest = [leaf for leaf, number in zip(leaves, numbers, strict=True) if number < 0]
                if given:
                    param, *rest = _choose(given[i], [param, *rest], [params[i], *states[i]])
                new_params[i], new_states[i] = param, rest
        return new_params, (new_states, new_shared)

    @staticmethod
    def _filled(kind: StateKind, stacks: Sequence[Tensor], shared: Sequence[Tensor]) -> list[Tensor]:
        rest = [*reversed(stacks)]
        return [rest.pop() if number < 0 else shared[number] for number in kind.shared]


def _choose(given: Tensor, new: Sequence[Tensor], old: Sequence[Tensor]) -> list[Tensor]:
    pairs = zip(new, old, strict=True)
    return [torch.where(given.view(-1, *[1] * (x.ndim - 1)), x, y) for x, y in pairs]


def alike(params: Mapping[Key, Tensor]) -> dict[Any, list[Key]]:
    """Return the parameters of each shape, dtype and device."""
    found: dict[Any, list[Key]] = {}
    for key, param in params.items():
        found.setdefault((param.shape, param.dtype, param.device), []).append(key)
    return found
