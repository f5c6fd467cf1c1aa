"""Another transform for each kind of parameter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from functopt import tree
from functopt.base import Transform, state_class
from functopt.combine import combinator, no_updates
from functopt.masks import cut, fill, prefix_of, step_on, values_of
from functopt.tree import Tree
from functopt.wrappers.common import check_inner, check_state

__all__ = ["PartitionState", "multi_transform", "partition"]


@state_class
class PartitionState(NamedTuple):
    """The state of every part by its label, with ``()`` in the place of every leaf of another part."""

    inner_states: dict[str, Tree]

    by_label = True  # the dict's keys are no parameters', even if they are called the same


@combinator
def partition(transforms: Mapping[str, Transform], param_labels: Tree | Callable[[Tree], Tree]) -> Transform:
    """Apply another transform to each kind of parameter.

    Each part sees parameters, updates and extras with ``()`` in the place of leaves that are not its own, so that its
    global norms are those of its leaves alone, and it has no state for others.

    The hypers are those of the parts, by label: ``tx.hypers == {"body": {"lr": ...}, "head": {"lr": ...}}``. They are
    given in the same way or by their full names, ``update(..., {"body": {"lr": 0.1}})`` or ``{"body.lr": 0.1}``; in
    param groups and in a sweep they have their full names. A value for each layer is a prefix of all parameters.

    It is called ``multi_transform``, too. If one of the parts writes the parameters itself, so does the partition.

    Args:
        transforms: the transform of each label.
        param_labels: a tree of labels that is a prefix of the parameters, or a function from the parameters to one.

    Raises:
        TypeError: a transform is none, or a label is not a string.
        ValueError: a label has no transform, or has a dot in it, or the labels are no prefix of the parameters.

    >>> tx = partition({"body": sgd(lr=0.1), "head": adam()}, {"w": "body"})
    >>> tx.update(grads, tx.init(params), params, {"body": {"lr": 0.2}})[0]
    {'w': tensor([ 0.9000, -2.2000])}
    """
    if not isinstance(transforms, dict):
        raise TypeError(f"partition: transforms is a {type(transforms).__name__}, expected a dict by label")
    for label, tx in transforms.items():
        if not isinstance(label, str):
            raise TypeError(f"partition: the label {label!r} is a {type(label).__name__}, expected a string")
        if "." in label:
            raise ValueError(f"partition: the label {label!r} has a dot in it, which stands before a hyper's name")
        check_inner(f"partition: {label!r}", tx)
    writes = any(tx.writes for tx in transforms.values())

    def labels_of(params: Tree) -> Tree:
        found = prefix_of(param_labels, params, "partition", str, "the label", "a string")
        if not transforms.keys() >= {*values_of(found)}:
            path, label = next((p, label) for p, label in tree.leaves_with_paths(found) if label not in transforms)
            raise ValueError(
                f"partition: no optimizer for label {label!r}, which {path!r} has; have {[*transforms]}. Add it, or "
                "map the label to freeze()."
            )
        return found

    def of_label(hypers: Mapping[str, Any], label: str) -> dict[str, Any]:
        own = f"{label}."
        return {name.removeprefix(own): value for name, value in hypers.items() if name.startswith(own)}

    def init(params: Tree) -> PartitionState:
        labels = labels_of(params)
        parts = {label: cut(params, _mask(labels, label), "partition") for label in transforms}
        return PartitionState(
            {label: tx._init(parts[label]) if tree.leaves(parts[label]) else () for label, tx in transforms.items()}
        )

    def step(updates: Tree, state: Any, params: Tree, hypers: Any, extras: Any) -> tuple[Tree, Tree]:
        check_state("partition", state, PartitionState)
        labels, out, states = labels_of(params), updates, {}
        for label, tx in transforms.items():
            run, mask, own = tx.run if writes else tx._transform, _mask(labels, label), of_label(hypers, label)
            old = state.inner_states[label]
            part, states[label] = step_on(mask, run, "partition", updates, old, params, own, extras)
            out = fill(part, out)
        return out, PartitionState(states)

    def transform(updates: Tree, state: Tree, params: Tree, hypers: Any, **extras: Any) -> tuple[Tree, Tree]:
        return step(updates, state, params, hypers, extras)

    made = Transform(
        init,
        no_updates("partition") if writes else transform,
        write=transform if writes else None,
        hypers={f"{label}.{name}": value for label, tx in transforms.items() for name, value in tx._defaults.items()},
        rebind=lambda new: partition(
            {label: tx.with_hypers(**of_label(new, label)) for label, tx in transforms.items()}, param_labels
        ),
        scopes=[scope for tx in transforms.values() for scope in tx._scopes] + [("partition", "matrix")],
    )
    made.__dict__["_paced"] = frozenset(f"{label}.{name}" for label, tx in transforms.items() for name in tx._paced)
    return made


def _mask(labels: Tree, label: str) -> Tree:
    return tree.map(lambda own: own == label, labels)


multi_transform = partition
