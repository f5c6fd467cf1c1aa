"""StatefulOptimizer: a functional optimizer behind the interface of ``torch.optim.Optimizer``."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

import optree
import torch
from torch import Tensor

from functopt import tree
from functopt.base import Transform
from functopt.checkpoint import check_state_dict, saved_ids, with_schedules
from functopt.closure import ClosureLoss
from functopt.control import MARKS, GroupControl, as_groups
from functopt.eager import EagerStep
from functopt.fused import CompiledStep
from functopt.hypers import check_hyper, show, unknown_hyper
from functopt.inplace import InPlace, Values
from functopt.param_state import SHARED
from functopt.sharded import assign, check_whole
from functopt.views import Group, ParamState, State

__all__ = ["StatefulOptimizer"]

# What a group may hold beside the optimizer's own hypers; most of it is put there by torch's LR schedulers.
_OTHER_KEYS = {
    "params", "param_names", "name", "initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum", "steps",
}  # fmt: skip

# How a state_dict calls what belongs to all parameters. Every parameter has it, as only what belongs to a parameter
# goes through torch.distributed.checkpoint.
_SHARED = "shared."


class StatefulOptimizer(GroupControl, torch.optim.Optimizer):
    """Train a module's parameters in place with a functional optimizer: a real ``torch.optim.Optimizer``.

    ``step`` is ``tx.update`` on the tree of the parameters that have a gradient, written back into them. The tree is a
    dict keyed by name if the parameters come with names (``model.named_parameters()``), else by position, counted over
    all groups; masks and per-layer hypers refer to these keys.

    Eagerly it works piece by piece, so that little is held twice. With ``compile=True`` the step is one compiled graph
    in place, whatever the number of parameters: they lie in one flat buffer, and so do their gradients once they have
    arrived. Where links cannot run packed (see :func:`link <functopt.link>`) but do each leaf by itself, by a rule made
    of numbers, there is a buffer for the parameters of each shape; else the graph works leaf by leaf.

    Parameters may be sharded, as ``torch.distributed.fsdp.fully_shard`` does it (``DTensor`` s): their state is sharded
    like them, and norms are those of all processes together. A compiled step does not take them.

    The hypers of ``tx`` are entries of ``param_groups`` and may be changed between steps, by hand or by
    ``torch.optim.lr_scheduler``. Where there are ``beta1`` and ``beta2``, torch's ``betas`` is another way to read and
    write them. A group has its own copy of a hyper that is a tensor.

    A parameter whose ``.grad`` is None at a step is left untouched, its state included: every parameter has its own
    bookkeeping (the weights of its averages), as in torch. Counters that belong to the optimizer as a whole (those of
    schedules and lookahead) count every step at which some parameter has a gradient, and ``param_groups[i]["steps"]``
    those at which some parameter of the group has.

    It has the methods of fastai's optimizers too (:class:`GroupControl <functopt.control.GroupControl>`): hypers for
    all groups at once, freezing, and ``state[p]["do_wd"] = False``.

    Args:
        params: parameters, named parameters, dicts of a group's ``params`` and hypers, or lists of parameters, one for
            each group.
        tx: the optimizer.
        compile: compile the step; a dict has options for ``torch.compile``.
        **hypers: defaults that take the place of those of ``tx``.

    Raises:
        KeyError: ``tx`` has no hyper of a given name.
        ValueError: no parameters, a parameter that appears twice, or a number out of range.
        TypeError: a parameter is not a dense floating-point tensor.

    >>> optimizer = StatefulOptimizer(model.parameters(), fo.adamw(), lr=3e-4)
    """

    param_groups: list[dict[str, Any]]

    tx: Transform  # as given, with the defaults of the optimizer
    _inner: InPlace = None  # with the state  # pyright: ignore[reportAssignmentType]
    _step: EagerStep | CompiledStep

    def __init__(self, params: Any, tx: Transform, *, compile: bool | Mapping[str, Any] = False, **hypers: Any) -> None:
        if not isinstance(tx, Transform):
            hint = "; call it to make one" if callable(tx) else ""
            raise TypeError(f"StatefulOptimizer: tx is a {type(tx).__name__}, expected a Transform{hint}")
        later = {name: value for name, value in hypers.items() if isinstance(value, (slice, list))}
        self.tx = tx.with_hypers(**Group({name: value for name, value in hypers.items() if name not in later}))
        self._compile, self._marks = compile, {}
        super().__init__(as_groups(params), dict(self.tx._defaults))
        if {"beta1", "beta2"} <= self.defaults.keys():  # OneCycleLR and CyclicLR look for it
            self.defaults["betas"] = (self.defaults["beta1"], self.defaults["beta2"])
        self.set_hypers(**later)
        self._include(set())

    # Parameters and groups

    def _items(self) -> Iterator[tuple[Any, Tensor, dict[str, Any]]]:
        """Yield the key, the parameter and the group of every parameter."""
        position = 0
        for group in self.param_groups:
            names = group.get("param_names")
            for i, param in enumerate(group["params"]):
                yield (names[i] if names else position), param, group
                position += 1

    def _values(self) -> Values:
        """Return the hypers in force."""
        by_name = {name: [group[name] for group in self.param_groups] for name in self.tx._defaults}
        marks = self._marks.items()
        return Values(by_name, self._group_of, {key for key, own in marks if not own.get("do_wd", True)})

    def _hyper_names(self) -> list[str]:
        return list(self.tx._defaults)

    def _check_hyper(self, name: str, value: Any) -> None:
        check_hyper(
            "StatefulOptimizer", name, value, schedules=self._inner is None or self._inner.tx.takes_schedule(name)
        )

    def _marks_of(self, param: Tensor) -> dict[str, bool]:
        for key, own, _ in self._items():
            if own is param:
                return self._marks.setdefault(key, {})
        raise KeyError("StatefulOptimizer: the parameter does not belong to this optimizer")

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, with hypers of its own; the state of the others stays as it is.

        Args:
            param_group: ``params``, and hypers that take the place of the defaults. It is copied.

        Raises:
            KeyError: the optimizer has no hyper of a given name.
            ValueError: a parameter or name appears twice, a number is out of range, or a schedule is given to an
                optimizer that has no step counter.
            TypeError: a parameter is not a dense floating-point tensor.
        """
        if not isinstance(param_group, Mapping) or "params" not in param_group:
            raise TypeError("add_param_group: expected a dict with 'params' and hypers")
        group = Group(param_group)
        for name in group:
            if name not in self.tx._defaults and name not in _OTHER_KEYS:
                raise KeyError(unknown_hyper(name, self.tx._defaults, "StatefulOptimizer"))
        for name, default in self.tx._defaults.items():
            # copied, because LR schedulers write into tensors: neither the defaults nor another group may change
            group[name] = _copied(group.get(name, default))
            self._check_hyper(name, group[name])
        group.setdefault("steps", 0)
        if not isinstance(group["params"], (Tensor, set)):
            group["params"] = list(group["params"])
            _check_unique(group["params"])
        before = {key for key, _, _ in self._items()}
        super().add_param_group(group)
        if self._inner is not None:
            try:
                self._include(before)
            except Exception:
                self.param_groups.pop()
                raise

    def _include(self, before: set[Any]) -> None:
        """Make the state of the parameters that are new since there were those called ``before``."""
        items = list(self._items())
        params = {key: param.detach() for key, param, _ in items}
        numbers = {id(group): i for i, group in enumerate(self.param_groups)}
        self._group_of = {key: numbers[id(group)] for key, _, group in items}
        if len(params) < len(items):
            raise ValueError("StatefulOptimizer: two parameters have the same name")
        if before and len(params) == len(before):
            return
        new = {key: param for key, param in params.items() if key not in before}
        tree.check_params(new, "StatefulOptimizer", complex=self.tx._takes_complex)
        if self._compile is not False:
            check_whole(params, "StatefulOptimizer: a compiled step")
        self._settle(InPlace(self.tx, self._values(), params))

    def _settle(self, inner: InPlace) -> None:
        """Take over from what was there, if anything: its state goes on."""
        if self._inner is not None:
            old = self._inner.entries()
            for entry, leaf in inner.entries().items():
                if entry in old:
                    assign(leaf, old[entry])
            if isinstance(self._step, CompiledStep):
                self._step.close()
        self._inner = inner
        params = {key: param for key, param, _ in self._items()}
        compiled = self._compile is not False
        options = self._compile if isinstance(self._compile, Mapping) else {}
        self._step = CompiledStep(inner, params, options) if compiled else EagerStep(inner, params)

    # Steps

    def step(self, closure: Callable[[], Any] | None = None, **extras: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take one step for the parameters that have a gradient.

        Args:
            closure: computes the loss anew and its gradients. Its loss is the extra ``value``; the extra ``value_fn``
                is the loss as a function of a tree of parameters, for links that search along a line.
            **extras: handed to ``tx.update``, for links that need more than gradients.

        Returns:
            What the closure returned, else None.

        Raises:
            TypeError: a gradient is sparse, or a link needs an extra that is missing.
            ValueError: a hyper of a group is out of range. Parameters and state are unchanged then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
            if isinstance(loss, Tensor):
                extras.setdefault("value", loss.detach())
            extras.setdefault("value_fn", ClosureLoss(closure, {key: param for key, param, _ in self._items()}))
        for group in self.param_groups:
            for name in self.tx._defaults:
                self._check_hyper(name, group[name])
        params = {key: param for key, param, _ in self._items()}
        grads = {key: grad for key, param in params.items() if (grad := param.grad) is not None}
        if grads:
            grads = _dense(grads)
            # not update: torch has made sure that gradients fit, and the hypers are checked above, once for each group
            with torch.no_grad():
                self._step(params, grads, self._values(), extras)
        for group in self.param_groups:
            group["steps"] += any(param.grad is not None for param in group["params"])
        return loss

    def clear_state(self) -> None:
        """Make the state what it was before the first step; parameters, hypers and marks stay."""
        self._start_anew({key for key, _, _ in self._items()} | {SHARED})
        for group in self.param_groups:
            group["steps"] = 0

    @torch.no_grad()
    def _start_anew(self, owners: AbstractSet[Any]) -> None:
        params = {key: param for key, param, _ in self._items()}
        fresh = InPlace(self.tx, self._values(), params).entries()
        for (owner, name), leaf in self._inner.entries().items():
            if owner in owners:
                assign(leaf, fresh[owner, name])

    # State

    @property
    def state(self) -> dict[Any, dict[str, Any]]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The state of every parameter, by names such as ``"mu.total"``; what is common to all is under ``"shared"``.

        Every parameter has that too, as ``"shared.count"``. It is put together anew whenever it is read. What is
        assigned to an entry of a parameter is copied into it; beside these, the marks ``state[p]["do_wd"] = False`` and
        ``state[p]["force_train"] = True`` may be set.
        """
        params = {key: param for key, param, _ in self._items()}
        view = State((param, ParamState(self._marks, key)) for key, param in params.items())
        shared = {}
        for (key, name), leaf in self._inner.entries().items():
            dict.__setitem__(shared if key is SHARED else view[params[key]], name, leaf)
        if shared:
            for own in view.values():  # torch.distributed.checkpoint looks here which names it has to find
                dict.update(own, {_SHARED + name: leaf for name, leaf in shared.items()})
            view["shared"] = shared
        return view

    @state.setter
    def state(self, value: Any) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        if value or self._inner is not None:  # torch's constructor assigns an empty one, before there is any
            raise AttributeError("StatefulOptimizer: state is only a view; to change it use load_state_dict")

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of the state, and the groups, as ``torch.optim.Optimizer.state_dict`` does.

        Every parameter has its own tensors there, what is common to all (as ``"shared.count"``), and its marks.
        """
        saved = super().state_dict()
        shared = {_SHARED + name: leaf for name, leaf in saved["state"].pop("shared", {}).items()}
        state = {i: {**own, **shared} for i, own in saved["state"].items() if own or shared}
        return {**saved, "state": tree.map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, state)}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` returned; training goes on bit for bit.

        Parameters are matched by name, group by group, if both sides have names, otherwise by their order. Tensors are
        copied to the device and dtype of the state here. A parameter of which nothing was saved starts anew. As with
        torch's optimizers, make LR schedulers first: they set the learning rate when they are made.

        Raises:
            ValueError: groups, names, hypers, entries or shapes do not match. Nothing is changed then.
            TypeError: it is no state_dict, or an entry has a type that nothing in one has. Nothing is changed then.
        """
        state_dict = dict(state_dict) if isinstance(state_dict, Mapping) else state_dict
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = hook(self, state_dict) or state_dict
        state_dict = with_schedules(state_dict, self.param_groups)
        check_state_dict("load_state_dict", state_dict, self.param_groups, self.tx._defaults)
        saved_groups = state_dict["param_groups"]
        sizes, saved_sizes = ([len(group["params"]) for group in gs] for gs in (self.param_groups, saved_groups))
        if sizes != saved_sizes:
            raise ValueError(f"load_state_dict: groups of {saved_sizes} parameters do not match those here, {sizes}")
        groups = [self._loaded(*pair) for pair in zip(self.param_groups, saved_groups, strict=True)]
        ids = [i for pair in zip(self.param_groups, saved_groups, strict=True) for i in saved_ids(*pair)]
        owners = {key: i for (key, _, _), i in zip(self._items(), ids, strict=True)}
        marks, values, anew = self._found(state_dict["state"], owners)
        self._start_anew(anew)
        for leaf, value in values:
            assign(leaf, value)
        self._marks.clear()  # not another dict: views of the state write to this one
        self._marks.update(marks)
        self.param_groups = groups
        for hook in self._optimizer_load_state_dict_post_hooks.values():
            hook(self)

    def _found(
        self, saved_state: Mapping[Any, Mapping[str, Any]], owners: Mapping[Any, Any]
    ) -> tuple[dict[Any, dict[str, bool]], list[tuple[Tensor, Tensor]], set[Any]]:
        """Return the marks in a saved state, which tensor goes where, and whose state is not there at all."""
        shared, saved, marks = {}, {}, {}
        for key, i in owners.items():
            own = saved_state.get(i, {})
            marks[key] = {name: bool(own[name]) for name in MARKS if name in own}
            for name, value in own.items():
                if name.startswith(_SHARED):
                    shared[name.removeprefix(_SHARED)] = value
                elif name not in MARKS:
                    saved[key, name] = value
        saved |= {(SHARED, name): value for name, value in shared.items()}
        present = {key for key, _ in saved}
        anew = {*owners} - present if present else {*owners, SHARED}
        values = []
        for (key, name), leaf in self._inner.entries().items():
            if key in anew:
                continue
            value = saved.pop((key, name), None)
            if not isinstance(value, Tensor) or value.shape != leaf.shape:
                whose = "the optimizer" if key is SHARED else f"parameter {key!r}"
                got = f"one of shape {list(value.shape)}" if isinstance(value, Tensor) else "none"
                raise ValueError(
                    f"load_state_dict: {whose} needs a {name!r} of shape {list(leaf.shape)}, but the saved state has "
                    f"{got}. Was it made by another optimizer?"
                )
            values.append((leaf, value))
        unknown = {str(i) for i in saved_state if i not in owners.values()} | {name for _, name in saved}
        if unknown:
            raise ValueError(
                f"load_state_dict: nothing here is called {sorted(unknown)}. Was it made by another optimizer?"
            )
        return {key: own for key, own in marks.items() if own}, values, anew

    def _loaded(self, group: dict[str, Any], saved: dict[str, Any]) -> dict[str, Any]:
        """Return a group with the hypers of a saved one."""
        loaded = Group({name: value for name, value in saved.items() if name not in ("params", "param_names")})
        keys = [key for key, _, own in self._items() if own is group]
        for name in self.tx._defaults:
            if name not in loaded:
                raise ValueError(f"load_state_dict: a saved group has no {name!r}. Was it made by another optimizer?")
            check_hyper("load_state_dict", name, loaded[name], schedules=self._inner.tx.takes_schedule(name))
            if isinstance(loaded[name], dict) and not {*keys} <= loaded[name].keys():
                raise ValueError(f"load_state_dict: {name} of a saved group has not a value for each of {keys}")
        return Group({**group, **copy.deepcopy(loaded)})

    def __getstate__(self) -> dict[str, Any]:
        own = {"tx": self.tx, "_compile": self._compile, "frozen_idx": self.frozen_idx, "saved": self.state_dict()}
        state = {**super().__getstate__(), **own}
        del state["state"]  # a view; saved has it
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        saved = state.pop("saved")
        self._marks = {}
        super().__setstate__(state)
        self._include(set())
        self.load_state_dict(saved)

    def __repr__(self) -> str:
        lines = [f"StatefulOptimizer({self.tx}"]
        for i, group in enumerate(self.param_groups):
            hypers = ", ".join(f"{name}={show(group[name])}" for name in self.tx._defaults)
            lines.append(f"  group {i}: {len(group['params'])} parameters, {hypers}")
        return "\n".join([*lines, ")"])


def _copied(hyper: Any) -> Any:
    return optree.tree_map(lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, hyper)


def _check_unique(params: list[Any]) -> None:
    ids = [id(entry[1] if isinstance(entry, tuple) else entry) for entry in params]
    for i, param in enumerate(ids):
        if ids.index(param) < i:
            raise ValueError(f"StatefulOptimizer: parameter {i} of the group is parameter {ids.index(param)} again")


def _dense(grads: dict[Any, Tensor]) -> dict[Any, Tensor]:
    sparse = [key for key, grad in grads.items() if grad.layout is not torch.strided]
    if sparse:
        raise TypeError(
            f"StatefulOptimizer: the gradient of parameter {sparse[0]!r} is sparse, expected a dense one: "
            "use nn.Embedding(sparse=False)"
        )
    attached = [key for key, grad in grads.items() if grad.requires_grad]
    return {**grads, **{key: grads[key].detach() for key in attached}} if attached else grads
