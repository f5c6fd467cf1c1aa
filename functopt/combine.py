"""Putting transforms together: chain, sequence, rename, scheduled."""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, ParamSpec, overload

import optree
import torch
from torch import Tensor

from functopt import tree
from functopt.base import Scope, Transform, state_class, with_call
from functopt.hypers import Hypers, has_schedule, same_value, show
from functopt.numerics import accumulator_dtype
from functopt.tree import Tree, is_schedule

__all__ = [
    "ScheduledState",
    "chain",
    "combinator",
    "merge_hypers",
    "rename",
    "scheduled",
    "sequence",
    "split_chain",
    "without_counter",
]

P = ParamSpec("P")


@overload
def combinator(definition: Callable[P, Transform]) -> Callable[P, Transform]: ...


@overload
def combinator(*, paces: bool) -> Callable[[Callable[P, Transform]], Callable[P, Transform]]: ...


def combinator(definition: Callable[..., Any] | None = None, *, paces: bool = False) -> Any:
    """Turn a function from transforms to a transform into a constructor of values, as :func:`link` does for links.

    What it makes prints, compares and pickles as its call, and has ``with_hypers``: new defaults go to every transform
    among the arguments that knows the name, and to the argument of that name.

    If a transform among the arguments counts steps (see :func:`scheduled`), the result counts them in its place, once
    for all; if a default of the result is a schedule, it counts them too.

    Args:
        definition: the function.
        paces: it does not take a step of what it is given at each of its own. That then counts its own steps, and its
            schedules go by these.

    >>> @combinator
    ... def halved(tx: Transform) -> Transform:
    ...     return chain(tx, scale(0.5))
    >>> halved(sgd(lr=0.1))
    chain(add_decayed_weights(weight_decay=0.0), scale_by_lr(lr=0.1), scale(step_size=0.5))
    """
    if definition is None:
        return functools.partial(combinator, paces=paces)
    signature = inspect.signature(definition)

    @functools.wraps(definition)
    def make(*args: Any, **kwargs: Any) -> Transform:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        given: Tree = dict(bound.arguments)
        counted = not paces and any(tx._counts_steps for tx in _transforms(given))
        for name, value in bound.arguments.items():
            bound.arguments[name] = optree.tree_map(_counted if paces else _uncounted, value, none_is_leaf=True)
        tx = definition(*bound.args, **bound.kwargs)
        tx.__dict__["_paced"] = tx._paced or _paced(make.__name__, tx, _transforms(dict(bound.arguments)))
        if tx._call is None:
            if tx._rebind is None:
                tx.__dict__["_rebind"] = functools.partial(_rebind_arguments, make, bound)
            with_call(tx, make, *_call_arguments(bound))
        if counted or _lacks_counter(tx):
            return scheduled(tx)
        return tx

    return make


def _call_arguments(bound: inspect.BoundArguments) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Split arguments for showing: transforms by position, everything else by name."""
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        kind = bound.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            args.extend(value)
        elif kind is inspect.Parameter.VAR_KEYWORD:
            kwargs.update(value)
        elif _holds_transform(value) and not kwargs:
            args.append(value)
        else:
            kwargs[name] = value
    return tuple(args), kwargs


def _transforms(arguments: Tree) -> list[Transform]:
    return [leaf for leaf in optree.tree_leaves(arguments, none_is_leaf=True) if isinstance(leaf, Transform)]


def _uncounted(leaf: Any) -> Any:
    return leaf._call[1][0] if isinstance(leaf, Transform) and leaf._counts_steps and leaf._call else leaf


def _counted(leaf: Any) -> Any:
    return scheduled(leaf) if isinstance(leaf, Transform) and _lacks_counter(leaf) else leaf


def _lacks_counter(tx: Transform) -> bool:
    return any(has_schedule(value) for name, value in tx._defaults.items() if not tx.takes_schedule(name))


def _paced(who: str, tx: Transform, parts: list[Transform]) -> frozenset[str]:
    """Return the hypers of ``tx`` whose schedules go by the counters of its parts.

    Raises:
        ValueError: a schedule would go by two counters.
    """
    found = set()
    for name, value in tx._defaults.items():
        users = [part for part in parts if name in part._defaults]
        without = [part for part in users if not part.takes_schedule(name)]
        if len(without) == len(users):
            continue
        if not without:
            found.add(name)
        elif has_schedule(value):
            (inside, *_), (outside, *_) = [part for part in users if part not in without], without
            raise ValueError(
                f"{who}: {name!r} is a schedule, which {inside} reads at the steps that it counts itself, but "
                f"{outside} has no counter of its own. Keep them apart: rename({inside.name}(...), "
                f"{name}='inner_{name}')."
            )
    return frozenset(found)


def _rebind_arguments(make: Callable[..., Transform], bound: inspect.BoundArguments, new: dict[str, Any]) -> Transform:
    def renew(leaf: Any) -> Any:
        if isinstance(leaf, Transform):
            return leaf.with_hypers(**{name: value for name, value in new.items() if name in leaf._defaults})
        return leaf

    fresh = bound.signature.bind(*bound.args, **bound.kwargs)
    for name, value in fresh.arguments.items():
        renewed = optree.tree_map(renew, value, none_is_leaf=True)
        fresh.arguments[name] = new[name] if name in new and not _holds_transform(value) else renewed
    return make(*fresh.args, **fresh.kwargs)


def _holds_transform(value: Any) -> bool:
    return any(isinstance(leaf, Transform) for leaf in optree.tree_leaves(value, none_is_leaf=True))


def merge_hypers(parts: Iterable[Transform], who: str) -> dict[str, Any]:
    """Merge the defaults of several transforms: those that share a name share the value.

    Raises:
        ValueError: two have different defaults under one name; the message names both.
    """
    merged: dict[str, Any] = {}
    owner: dict[str, Transform] = {}
    for part in parts:
        for name, value in part._defaults.items():
            if name in merged and not same_value(merged[name], value):
                raise ValueError(
                    f"{who}: {owner[name]} and {part} have different defaults for {name!r} ({show(merged[name])} and "
                    f"{show(value)}), but links that share a name share the value. Give both the same, or keep them "
                    f"apart: rename({part.name}(...), {name}='{part.name}_{name}')."
                )
            merged.setdefault(name, value)
            owner.setdefault(name, part)
    return merged


def _check_transforms(who: str, parts: tuple[Any, ...]) -> None:
    for i, part in enumerate(parts):
        if not isinstance(part, Transform):
            hint = "; call it to make one" if callable(part) else ""
            raise TypeError(f"{who}: argument {i + 1} is a {type(part).__name__}, expected a Transform{hint}")


def _check_state(who: str, state: Tree, count: int) -> None:
    if not (type(state) is tuple and len(state) == count):
        got = f"a tuple of {len(state)}" if type(state) is tuple else type(state).__name__
        raise ValueError(
            f"{who}: the state belongs to another optimizer: expected a tuple of {count} states, got {got}. "
            "Use the state that init of this optimizer returned."
        )


@combinator
def chain(*transforms: Transform) -> Transform:
    """Apply transforms one after the other: the updates of each are what the next one gets.

    ``chain(a, b)`` computes ``b(a(grads))``, with the same parameters for both. The state is the tuple of the states.
    Chains inside a chain are flattened, so that ``chain(chain(a, b), c) == chain(a, chain(b, c))``. Links that share a
    hyper's name share its value.

    Args:
        *transforms: links, recipes or other chains. Only the last may be one that writes the parameters itself
            (``lookahead``, ``sequence``).

    Raises:
        ValueError: two links have different defaults for one name, or a transform stands after one that writes the
            parameters itself.
        TypeError: an argument is not a transform.

    >>> tx = chain(clip_by_global_norm(1.0), sgd(lr=0.1))
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.9553, -2.0894])}
    """
    _check_transforms("chain", transforms)
    parts: list[Transform] = []
    for tx in transforms:
        parts.extend(tx._call[1] if tx._call and tx._call[0] is chain else (tx,))
    for part, after in itertools.pairwise(parts):
        if part.writes:
            raise ValueError(
                f"chain: {part.name} writes the parameters itself, so nothing can stand after it: put {after.name} "
                "before it, or inside it."
            )

    def init(params: Tree) -> tuple[Tree, ...]:
        return tuple(part._init(params) for part in parts)

    def through(
        links: list[Transform], updates: Tree, state: Tree, params: Tree, hypers: Hypers, extras: dict[str, Any]
    ) -> tuple[Tree, list[Tree]]:
        _check_state("chain", state, len(parts))
        states = []
        for part, old in zip(links, state, strict=False):
            updates, new = part._transform(updates, old, params, hypers, **extras)
            states.append(new)
        return updates, states

    def transform(updates: Tree, state: Tree, params: Tree, hypers: Hypers, **extras: Any) -> tuple[Tree, Tree]:
        updates, states = through(parts, updates, state, params, hypers, extras)
        return updates, tuple(states)

    def write(grads: Tree, state: Tree, params: Tree, hypers: Hypers, **extras: Any) -> tuple[Tree, Tree]:
        updates, states = through(parts[:-1], grads, state, params, hypers, extras)
        params, last = parts[-1].run(updates, state[-1], params, hypers, **extras)
        return params, (*states, last)

    tx = Transform(
        init,
        transform,
        write=write if parts and parts[-1].writes else None,
        hypers=merge_hypers(parts, "chain"),
        rebind=lambda new: chain(
            *(p.with_hypers(**{name: value for name, value in new.items() if name in p._defaults}) for p in parts)
        ),
        scopes=itertools.chain(*(part._scopes for part in parts)),
    )
    return with_call(tx, chain, tuple(parts), {})


@combinator
def sequence(*optimizers: Transform) -> Transform:
    """Take the step of each optimizer after the other, with the same gradient, each from where the last one left.

    ``p ← a.update(g, p)``, then ``p ← b.update(g, p)``. This is the list of *steppers* of fastai's first optimizers,
    and differs from :func:`chain`, in which ``b`` transforms the updates of ``a`` and both see the same parameters. It
    matters where a rule reads the parameters: in ``sequence(decay, lamb)`` LAMB's norm is that of decayed weights.

    Args:
        *optimizers: complete optimizers. Those that share a hyper's name share its value.

    Raises:
        ValueError: two have different defaults for one name.
        TypeError: an argument is not a transform.

    >>> tx = sequence(sgd(lr=0.1), sgd(lr=0.1))
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.9000, -2.2000])}
    """
    _check_transforms("sequence", optimizers)

    def init(params: Tree) -> tuple[Tree, ...]:
        return tuple(tx._init(params) for tx in optimizers)

    def write(grads: Tree, state: Tree, params: Tree, hypers: Hypers, **extras: Any) -> tuple[Tree, Tree]:
        _check_state("sequence", state, len(optimizers))
        states = []
        for tx, old in zip(optimizers, state, strict=True):
            params, new = tx.run(grads, old, params, hypers, **extras)
            states.append(new)
        return params, tuple(states)

    return Transform(
        init,
        no_updates("sequence"),
        write=write,
        hypers=merge_hypers(optimizers, "sequence"),
        scopes=itertools.chain(*(tx._scopes for tx in optimizers)),
    )


def no_updates(who: str) -> Callable[..., tuple[Tree, Tree]]:
    """Return the ``transform`` of something that writes the parameters itself: it says so."""

    def transform(updates: Tree, state: Tree, params: Tree, hypers: Hypers, **extras: Any) -> tuple[Tree, Tree]:
        raise TypeError(f"{who} writes the parameters itself and has no updates to return: call update, not transform")

    return transform


@combinator
def rename(tx: Transform, **names: str) -> Transform:
    """Give hypers other names, so that two links of a chain can have their own values.

    Args:
        tx: the transform.
        **names: ``old_name="new_name"``.

    Raises:
        KeyError: ``tx`` has no hyper of an old name.
        ValueError: two hypers would have the same name.

    >>> dict(rename(ema(0.9), decay="ema_decay").hypers)
    {'ema_decay': 0.9}
    """
    _check_transforms("rename", (tx,))
    tx.check_names(names)
    outer = {name: names.get(name, name) for name in tx._defaults}
    if len({*outer.values()}) < len(outer):
        raise ValueError(f"rename: two hypers of {tx.name} would have one name: {outer}")

    def inner(values: Hypers) -> dict[str, Any]:
        return {name: values[new] for name, new in outer.items() if new in values}

    def transform(updates: Tree, state: Tree, params: Tree, hypers: Hypers, **extras: Any) -> tuple[Tree, Tree]:
        return tx._transform(updates, state, params, inner(hypers), **extras)

    def write(grads: Tree, state: Tree, params: Tree, hypers: Hypers, **extras: Any) -> tuple[Tree, Tree]:
        return tx.run(grads, state, params, inner(hypers), **extras)

    renamed = Transform(
        tx._init,
        transform,
        write=write if tx.writes else None,
        hypers={new: tx._defaults[name] for name, new in outer.items()},
        rebind=lambda new: rename(tx.with_hypers(**inner(new)), **names),
        scopes=tx._scopes,
    )
    renamed.__dict__["_paced"] = frozenset(outer[name] for name in tx._paced)
    return renamed


@state_class
class ScheduledState(NamedTuple):
    """The number of steps taken so far, beside the state of what is scheduled."""

    count: Tensor  # 0-d, int64  # pyright: ignore[reportIncompatibleMethodOverride]
    inner: Tree


def scheduled(tx: Transform) -> Transform:
    """Add a step counter, so that hypers may be schedules; ``chain`` adds it by itself when a default is one.

    At its first step (count 0) the optimizer uses ``schedule(0)``, as in optax. The step is given to schedules as a
    0-d tensor in the precision of the bookkeeping: float32, or float64 for float64 parameters.

    >>> tx = scheduled(sgd())
    >>> tx.update(grads, tx.init(params), params, {"lr": linear_schedule(0.1, 0.0, 10)})[0]
    {'w': tensor([ 0.9500, -2.1000])}
    """
    _check_transforms("scheduled", (tx,))
    if tx._counts_steps:
        return tx

    def init(params: Tree) -> ScheduledState:
        count = tree.counter(params)
        return ScheduledState(count, tx._init(params))

    def counted(step: Callable[..., tuple[Tree, Tree]]) -> Callable[..., tuple[Tree, Tree]]:
        def run(updates: Tree, state: ScheduledState, params: Tree, hypers: Hypers, **extras: Any) -> tuple[Tree, Tree]:
            if not isinstance(state, ScheduledState):
                raise ValueError(
                    f"scheduled: the state belongs to another optimizer: expected ScheduledState, got "
                    f"{type(state).__name__}. Use the state that init of this optimizer returned."
                )
            at = state.count.to(accumulator_dtype(optree.tree_leaves(params)[0].dtype))
            values = {name: v if name in tx._paced else _value_at(v, at) for name, v in hypers.items()}
            out, inner = step(updates, state.inner, params, values, **extras)
            return out, ScheduledState(state.count + 1, inner)

        return run

    wrapped = Transform(
        init,
        counted(tx._transform),
        write=counted(tx._write) if tx._write is not None else None,
        hypers=tx.hypers,
        rebind=lambda new: scheduled(tx.with_hypers(**new)),
        scopes=tx._scopes,
    )
    wrapped.__dict__.update(_counts_steps=True, _paced=tx._paced, _takes_complex=tx._takes_complex)
    return with_call(wrapped, scheduled, (tx,), {})


def without_counter(tx: Transform, state: Tree, dtype: torch.dtype) -> tuple[Transform, Tree, Tensor | None]:
    """Take the step counter off: return what is scheduled, its state, and the step for schedules, None if none is.

    Args:
        tx: the transform.
        state: its state.
        dtype: of the parameters.
    """
    if not tx._counts_steps or tx._call is None:
        return tx, state, None
    return tx._call[1][0], state.inner, state.count.to(accumulator_dtype(dtype))


def split_chain(tx: Transform, *scopes: Scope) -> tuple[int, Transform, Transform] | None:
    """Split a chain after its last link whose scope is none of these: ``(number of parts ahead, those, the rest)``.

    None if it is not a chain, or nothing is left.
    """
    parts = tx._call[1] if tx._call and tx._call[0] is chain else ()
    ahead = max((i + 1 for i, part in enumerate(parts) if part.links_beyond(*scopes)), default=0)
    return (ahead, chain(*parts[:ahead]), chain(*parts[ahead:])) if 0 < ahead < len(parts) else None


def _value_at(value: Tree, step: Tensor) -> Tree:
    if isinstance(value, (float, int, Tensor)):
        return value
    return tree.map(lambda leaf: leaf(step) if is_schedule(leaf) else leaf, value)
