"""StatefulOptimizer: a functional optimizer behind the interface of ``torch.optim.Optimizer``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from functopt import tree
from functopt.base import Transform
from functopt.hypers import check_hyper, unknown_hyper
from functopt.tree import Tree

__all__ = ["StatefulOptimizer"]

# What torch's LR schedulers put into a group beside the optimizer's own hypers.
_SCHEDULER_KEYS = {"initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum"}


class StatefulOptimizer(torch.optim.Optimizer):
    """Train a module's parameters in place with a functional optimizer: a real ``torch.optim.Optimizer``.

    ``step`` collects the parameters that have a gradient into a tree, calls ``tx.update`` on it and writes the result
    back. The tree is a dict keyed by name if the parameters come with names (``model.named_parameters()``), else by
    position, counted over all groups; masks and per-layer hypers refer to these keys.

    The hypers of ``tx`` are entries of ``param_groups`` and may be changed between steps, by hand or by
    ``torch.optim.lr_scheduler``. Where there are ``beta1`` and ``beta2``, torch's ``betas`` is another way to read and
    write them.

    A parameter whose ``.grad`` is None at a step is left untouched, its state included: every parameter has its own
    bookkeeping (the weights of its averages), as in torch. Counters that belong to the optimizer as a whole (of schedules
    and lookahead) count every step.

    Args:
        params: parameters, named parameters, or dicts of a group's ``params`` and hypers.
        tx: the optimizer.
        **hypers: defaults that take the place of those of ``tx``.

    Raises:
        KeyError: ``tx`` has no hyper of a given name.
        ValueError: no parameters, a parameter that appears twice, or a number out of range.
        TypeError: a parameter is not a dense floating-point tensor.

    >>> optimizer = StatefulOptimizer(model.parameters(), fo.adamw(), lr=3e-4)
    """

    def __init__(self, params: Any, tx: Transform, **hypers: Any) -> None:
        if not isinstance(tx, Transform):
            hint = "; call it to make one" if callable(tx) else ""
            raise TypeError(f"StatefulOptimizer: tx is a {type(tx).__name__}, expected a Transform{hint}")
        self._base = tx.with_hypers(**hypers)
        self._tx = self._base
        self._state: Tree = ()
        super().__init__(params, dict(self._base.hypers))
        if "beta1" in self.defaults and "beta2" in self.defaults:  # what OneCycleLR and CyclicLR look for
            self.defaults["betas"] = (self.defaults["beta1"], self.defaults["beta2"])

    # Parameters and groups

    def _items(self) -> Iterator[tuple[Any, Tensor, dict[str, Any]]]:
        """Yield the key, the parameter and the group of every parameter."""
        position = 0
        for group in self.param_groups:
            names = group.get("param_names")
            for i, param in enumerate(group["params"]):
                yield (names[i] if names else position), param, group
                position += 1

    def _hypers(self, keys: Iterable[Any] | None = None) -> dict[str, dict[Any, Any]]:
        """Return the hypers in force, with a value for every parameter."""
        wanted = None if keys is None else {*keys}
        items = [(key, group) for key, _, group in self._items() if wanted is None or key in wanted]
        return {name: {key: _value(group[name], key, name) for key, group in items} for name in self._base.hypers}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, with hypers of its own; the state of the others stays as it is.

        Raises:
            KeyError: the optimizer has no hyper of a given name.
            ValueError: the group is empty, or a parameter or name appears twice.
        """
        if not isinstance(param_group, Mapping):
            raise TypeError(f"add_param_group: expected a dict, got {type(param_group).__name__}")
        group = _Group({k: v for k, v in param_group.items() if k != "betas"})
        if "betas" in param_group:
            group["betas"] = param_group["betas"]
        for name in group.keys() - {"params", "param_names"} - _SCHEDULER_KEYS:
            if name not in self._base.hypers:
                raise KeyError(unknown_hyper(name, self._base.hypers, "StatefulOptimizer"))
        before = [key for key, _, _ in self._items()]
        if not isinstance(group["params"], (Tensor, set)):
            group["params"] = list(group["params"])
            _check_unique(group["params"])
        super().add_param_group(group)
        group.discard_alias()
        try:
            self._include(before)
        except Exception:
            self.param_groups.pop()
            raise

    def _include(self, before: list[Any]) -> None:
        """Make the state of the parameters that the last group brought."""
        params = {key: param for key, param, _ in self._items()}
        if len(params) < sum(1 for _ in self._items()):
            raise ValueError("StatefulOptimizer: two parameters have the same name")
        hypers = self._hypers()
        tx = self._base.with_hypers(**hypers)
        new = {key: param.detach() for key, param in params.items() if key not in {*before}}
        tree.check_params(new, "StatefulOptimizer")
        own = {name: {key: values[key] for key in new} for name, values in hypers.items()}
        state = self._base.with_hypers(**own).init(new)
        if before:
            state = _merge(self._state, state, {*before}, {*new}, shared_from_new=False)
        self._tx, self._state = tx, state

    # Steps

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take one step for the parameters that have a gradient.

        Args:
            closure: computes the loss anew and its gradients.

        Returns:
            What the closure returned, else None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        keys, params, grads = {*()}, {}, {}
        for key, param, _ in self._items():
            keys.add(key)
            if param.grad is not None:
                params[key], grads[key] = param, param.grad
        if not params:
            return loss
        with torch.no_grad():
            state = self._state if len(params) == len(keys) else _restrict(self._state, keys, {*params})
            new, state = self._tx.update(grads, state, params, self._hypers(params))
            for key, param in params.items():
                param.copy_(new[key])
            if len(params) < len(keys):
                state = _merge(self._state, state, keys, {*params}, shared_from_new=True)
            self._state = state
        return loss

    # State

    @property
    def state(self) -> dict[Any, dict[str, Tensor]]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The state of every parameter, by names such as ``"mu.total"``; what is common to all is under ``"shared"``."""
        params = {key: param for key, param, _ in self._items()}
        view: dict[Any, dict[str, Tensor]] = {param: {} for param in params.values()}
        names = _names(self._state, {*params})
        for path, key, leaf in _walk(self._state, {*params}):
            view.setdefault("shared" if key is _SHARED else params[key], {})[names[path]] = leaf
        return view

    @state.setter
    def state(self, value: Any) -> None:
        pass  # torch's constructor gives an empty one; ours is built from the parameters

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` returned; training goes on bit for bit.

        Parameters are matched by their order, as in torch. Tensors are copied to the device and dtype of the state.

        Raises:
            ValueError: groups, parameters, entries or shapes do not match. Nothing is changed then.
        """
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = hook(self, state_dict) or state_dict
        saved_groups, saved_state = state_dict["param_groups"], state_dict["state"]
        sizes, saved_sizes = ([len(group["params"]) for group in gs] for gs in (self.param_groups, saved_groups))
        if sizes != saved_sizes:
            raise ValueError(f"load_state_dict: groups of {saved_sizes} parameters do not match those here, {sizes}")
        groups = []
        for group, saved in zip(self.param_groups, saved_groups, strict=True):
            missing = [name for name in self._base.hypers if name not in saved]
            if missing:
                raise ValueError(f"load_state_dict: a saved group has no hyper {missing[0]!r}; is it another optimizer's?")
            for name in self._base.hypers:
                check_hyper("load_state_dict", name, saved[name])
            groups.append(_Group({**group, **saved, "params": group["params"]}))
        index = {key: i for i, (key, _, _) in enumerate(self._items())}
        names = _names(self._state, {*index})
        used = {}
        for path, key, leaf in _walk(self._state, {*index}):
            owner, name = ("shared" if key is _SHARED else index[key]), names[path]
            value = saved_state.get(owner, {}).get(name)
            if not isinstance(value, Tensor) or value.shape != leaf.shape:
                got = f"shape {list(value.shape)}" if isinstance(value, Tensor) else "nothing of that name"
                raise ValueError(
                    f"load_state_dict: parameter {key!r} needs a {name!r} of shape {list(leaf.shape)}, but the saved state "
                    f"has {got}. Was it made by another optimizer?"
                )
            used[path, key] = value.detach().to(leaf).clone()
        self._state = _rebuild(self._state, {*index}, used)
        self.param_groups = groups
        for hook in self._optimizer_load_state_dict_post_hooks.values():
            hook(self)

    def __getstate__(self) -> dict[str, Any]:
        mine = {"_base": self._base, "_tx": self._tx, "_state": self._state}
        return {**{k: v for k, v in super().__getstate__().items() if k != "state"}, **mine}

    def __repr__(self) -> str:
        return f"StatefulOptimizer of {self._base}\n{super().__repr__()}"


class _Group(dict):
    """A param group in which torch's ``betas`` stands for ``beta1`` and ``beta2``."""

    def __getitem__(self, key: str) -> Any:
        if key == "betas" and "beta1" in self:
            return (self["beta1"], self["beta2"])
        return super().__getitem__(key)

    def __setitem__(self, key: str, value: Any) -> None:
        if key == "betas":
            super().__setitem__("beta1", value[0])
            super().__setitem__("beta2", value[1])
        else:
            super().__setitem__(key, value)

    def discard_alias(self) -> None:
        super().pop("betas", None)


def _value(value: Any, key: Any, name: str) -> Any:
    """Return the value for one parameter of a group's hyper, which may be a dict by key."""
    if not isinstance(value, dict):
        return value
    if key not in value:
        raise ValueError(f"StatefulOptimizer: {name} has no value for {key!r}; it has {sorted(value, key=str)}")
    return value[key]


def _check_unique(params: list[Any]) -> None:
    seen: dict[int, int] = {}
    for i, entry in enumerate(params):
        param = entry[1] if isinstance(entry, tuple) else entry
        if id(param) in seen:
            raise ValueError(f"StatefulOptimizer: parameter {i} of the group is parameter {seen[id(param)]} again")
        seen[id(param)] = i


# The state is any nesting in which a dict with exactly the parameters' keys holds one entry for each parameter; every
# other tensor belongs to all of them.

_SHARED = object()


def _per_parameter(node: Tree, keys: set[Any]) -> bool:
    return isinstance(node, dict) and node.keys() == keys


def _children(node: Tree) -> list[tuple[Any, Tree]]:
    if isinstance(node, dict):
        return list(node.items())
    if isinstance(node, (tuple, list)):
        return list(zip(getattr(node, "_fields", range(len(node))), node, strict=True))
    return []


def _like(node: Tree, children: list[Tree]) -> Tree:
    if isinstance(node, dict):
        return type(node)(zip(node, children, strict=True))
    return type(node)(*children) if hasattr(node, "_fields") else type(node)(children)


def _walk(node: Tree, keys: set[Any], path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any, Tensor]]:
    """Yield ``(path, key of the parameter or _SHARED, tensor)`` for every tensor of a state."""
    if isinstance(node, Tensor):
        yield path, _SHARED, node
    elif _per_parameter(node, keys):
        for key, leaf in node.items():
            yield path, key, leaf
    else:
        for name, child in _children(node):
            yield from _walk(child, keys, (*path, name))


def _names(state: Tree, keys: set[Any]) -> dict[tuple[Any, ...], str]:
    """Name every path of a state by its field names, with the positions in chains only where they are needed."""
    paths = {path for path, _, _ in _walk(state, keys)}
    short = {path: ".".join(str(part) for part in path if not isinstance(part, int)) for path in paths}
    taken = list(short.values())
    return {p: s if s and taken.count(s) == 1 else tree.path_name(p) for p, s in short.items()}


def _restrict(node: Tree, keys: set[Any], some: set[Any]) -> Tree:
    """Return the state of some of the parameters."""
    if isinstance(node, Tensor):
        return node
    if _per_parameter(node, keys):
        return {key: value for key, value in node.items() if key in some}
    return _like(node, [_restrict(child, keys, some) for _, child in _children(node)])


def _merge(old: Tree, new: Tree, keys: set[Any], some: set[Any], *, shared_from_new: bool) -> Tree:
    """Put the state of some parameters into that of others."""
    if isinstance(old, Tensor):
        return new if shared_from_new else old
    if _per_parameter(old, keys) and _per_parameter(new, some):
        return {**old, **new}
    pairs = zip(_children(old), _children(new), strict=True)
    return _like(old, [_merge(a, b, keys, some, shared_from_new=shared_from_new) for (_, a), (_, b) in pairs])


def _rebuild(node: Tree, keys: set[Any], used: dict[Any, Tensor], path: tuple[Any, ...] = ()) -> Tree:
    if isinstance(node, Tensor):
        return used[path, _SHARED]
    if _per_parameter(node, keys):
        return {key: used[path, key] for key in node}
    return _like(node, [_rebuild(child, keys, used, (*path, name)) for name, child in _children(node)])
