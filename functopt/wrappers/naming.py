"""named_chain: a chain whose states have names."""

from __future__ import annotations

from typing import Any

from functopt.base import Transform
from functopt.combine import combinator, merge_hypers
from functopt.hypers import Hypers
from functopt.tree import Tree

__all__ = ["named_chain"]


@combinator
def named_chain(*transforms: tuple[str, Transform]) -> Transform:
    """Apply transforms one after the other, as :func:`chain <functopt.chain>`, with a name for the state of each.

    The state is a dictionary by these names: ``tree.get(state, "adam.mu")``, whatever stands before it. As in a chain,
    links that share a hyper's name share its value, and only the last may be one that writes the parameters itself.

    Args:
        *transforms: pairs of a name and a transform.

    Raises:
        TypeError: an argument is not such a pair.
        ValueError: two have the same name, or different defaults for one hyper; or a transform stands after one that
            writes the parameters itself.

    >>> tx = named_chain(("clip", clip(0.5)), ("adam", adam(lr=0.1)))
    >>> sorted(tx.init(params))
    ['adam', 'clip']
    """
    for i, pair in enumerate(transforms):
        if not (isinstance(pair, tuple) and [*map(type, pair)] == [str, Transform]):
            raise TypeError(f"named_chain: argument {i + 1} is {pair!r}, expected a pair of a name and a Transform")
    names = [name for name, _ in transforms]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"named_chain: each transform needs a name of its own, but these occur twice: {repeated}")
    parts = dict(transforms)
    writing = [name for name in names[:-1] if parts[name].writes]
    if writing:
        raise ValueError(
            f"named_chain: {writing[0]!r} writes the parameters itself, so nothing can stand after it: put the others "
            "before it, or inside it."
        )

    def through(some: list[str], updates: Tree, state: Tree, params: Tree, hypers: Hypers, extras: Any) -> Any:
        if not (isinstance(state, dict) and {*state} == {*names}):
            got = sorted(state) if isinstance(state, dict) else type(state).__name__
            raise ValueError(
                f"named_chain: the state belongs to another optimizer: expected a dict of {names}, got {got}. "
                "Use the state that init of this optimizer returned."
            )
        new = {}
        for name in some:
            updates, new[name] = parts[name]._transform(updates, state[name], params, hypers, **extras)
        return updates, new

    def transform(updates: Tree, state: Tree, params: Tree, hypers: Hypers, **extras: Any) -> tuple[Tree, Tree]:
        return through(names, updates, state, params, hypers, extras)

    def write(grads: Tree, state: Tree, params: Tree, hypers: Hypers, **extras: Any) -> tuple[Tree, Tree]:
        updates, new = through(names[:-1], grads, state, params, hypers, extras)
        params, new[names[-1]] = parts[names[-1]].run(updates, state[names[-1]], params, hypers, **extras)
        return params, new

    return Transform(
        lambda params: {name: tx._init(params) for name, tx in parts.items()},
        transform,
        write=write if names and parts[names[-1]].writes else None,
        hypers=merge_hypers(parts.values(), "named_chain"),
        scopes=[scope for tx in parts.values() for scope in tx._scopes],
    )
