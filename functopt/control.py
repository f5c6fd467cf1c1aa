"""fastai's way to steer an optimizer with parameter groups: hypers of all groups at once, and freezing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from functopt.hypers import unknown_hyper
from functopt.tree import is_schedule

__all__ = ["MARKS", "AParam", "GroupControl", "as_groups", "our_name"]

MARKS = ("do_wd", "force_train")
"""What may be said of a single parameter, as fastai does in its state."""

# What fastai calls them, and what they are here, where the optimizer has it.
_FASTAI = {"wd": ("weight_decay",), "mom": ("momentum", "beta1"), "sqr_mom": ("beta2", "decay", "alpha")}


class AParam(NamedTuple):
    """A parameter with what belongs to it."""

    param: Tensor
    group: dict[str, Any]
    state: Mapping[str, Any]
    hyper: Mapping[str, Any]


class GroupControl:
    """Methods for a ``torch.optim.Optimizer``, beside which it stands as another base class.

    They have the names and the meaning of those of fastai's ``Optimizer``, so that a fastai ``Learner`` takes it.
    """

    param_groups: list[dict[str, Any]]
    state: Any
    frozen_idx: int = 0  # the first group that is not frozen

    def _hyper_names(self) -> list[str]:
        """Return the names of the hypers that a group has."""
        raise NotImplementedError

    def _check_hyper(self, name: str, value: Any) -> None:
        """Raise if a hyper cannot have a value."""

    def _marks_of(self, param: Tensor) -> dict[str, bool]:
        """Return what was said of a parameter, to be read and written."""
        raise NotImplementedError

    # Hypers

    @property
    def hypers(self) -> list[Mapping[str, Any]]:
        """The hypers of every group, under their names here and under fastai's: a copy to read."""
        names = self._hyper_names()
        return [_Hypers({name: _read(group, name) for name in names}) for group in self.param_groups]

    def set_hypers(self, **values: Any) -> None:
        """Set hypers of all groups.

        Args:
            **values: for each name one value for all groups; a list, tuple or array with one for each group;
                ``slice(a, b)`` for even multiples from ``a`` in the first group to ``b`` in the last; or ``slice(b)``
                for ``b`` in the last group and a tenth of it in the others. fastai's names ``wd``, ``mom`` and
                ``sqr_mom`` stand for ``weight_decay``, ``momentum`` or ``beta1``, and ``beta2`` or ``decay``.

        Raises:
            KeyError: there is no hyper of a name.
            ValueError: a value is out of range, or a list has not one for each group. Nothing is changed then.
        """
        names = self._hyper_names()
        new = {}
        for given, value in values.items():
            name = our_name(given, names)
            if name not in names:
                raise KeyError(unknown_hyper(given, names, type(self).__name__))
            new[name] = self._spread(name, value)
            for one in new[name]:
                self._check_hyper(name, one)
        for name, spread in new.items():
            for group, value in zip(self.param_groups, spread, strict=True):
                _write(group, name, value)

    def set_hyper(self, name: str, value: Any) -> None:
        """Set one hyper of all groups, as :meth:`set_hypers` does."""
        self.set_hypers(**{name: value})

    def _spread(self, name: str, value: Any) -> list[Any]:
        """Return one value for each group."""
        count = len(self.param_groups)
        if isinstance(value, slice):
            return _multiples(name, value, count)
        if isinstance(value, (Tensor, np.ndarray)) and value.ndim:
            value = value.tolist()
        if isinstance(value, Sequence) and not isinstance(value, str) and not is_schedule(value):
            if len(value) not in (1, count):
                raise ValueError(f"set_hypers: {name} has {len(value)} values, but there are {count} groups")
            return list(value) * (count if len(value) == 1 else 1)
        return [value] * count

    # Parameters, and which of them train

    @property
    def param_lists(self) -> list[list[Tensor]]:
        """The parameters of every group."""
        return [group["params"] for group in self.param_groups]

    def all_params(self, n: slice = slice(None), with_grad: bool = False) -> list[AParam]:
        """Return ``(param, group, state, hyper)`` for every parameter.

        Args:
            n: of which groups.
            with_grad: only of those that have a gradient.
        """
        state = self.state
        return [
            AParam(param, group, state.get(param, {}), hyper)
            for group, hyper in [*zip(self.param_groups, self.hypers, strict=True)][n]
            for param in group["params"]
            if not with_grad or param.grad is not None
        ]

    def mark(self, params: Iterable[Tensor], **marks: bool) -> None:
        """Say something of single parameters.

        Args:
            params: the parameters.
            **marks: ``do_wd=False``: its ``weight_decay`` is 0, whatever its group's. ``force_train=True``: it is not
                frozen, whatever group it is in.

        Raises:
            KeyError: there is no such mark, or a parameter is not of this optimizer.
        """
        of_each = [self._marks_of(param) for param in params]
        for name in marks:
            if name not in MARKS:
                raise KeyError(f"mark: there is no mark {name!r}; there are {list(MARKS)}")
        for own in of_each:
            own.update(marks)

    def freeze_to(self, n: int) -> None:
        """Train the groups from number ``n`` on, counted from the end if negative, and freeze those before.

        Frozen parameters do not require gradients. Those with the mark ``force_train`` are never frozen.
        """
        count = len(self.param_groups)
        if not -count <= n <= count:
            raise ValueError(f"freeze_to: there are {count} groups, got {n}")
        self.frozen_idx = n if n >= 0 else count + n
        for i, group in enumerate(self.param_groups):
            for param in group["params"]:
                param.requires_grad_(i >= self.frozen_idx or self._marks_of(param).get("force_train", False))

    def freeze(self) -> None:
        """Freeze all groups but the last.

        Raises:
            ValueError: there is only one.
        """
        if len(self.param_groups) < 2:
            raise ValueError("freeze: there is only one group, so nothing would train or nothing be frozen")
        self.freeze_to(-1)

    def unfreeze(self) -> None:
        """Train all groups."""
        self.freeze_to(0)


class _Hypers(dict):
    """The hypers of one group, which answer to fastai's names too."""

    def __missing__(self, name: str) -> Any:
        own = our_name(name, list(self))
        if own == name:
            raise KeyError(name)
        return self[own]


def our_name(name: str, names: Sequence[str]) -> str:
    """Return which of an optimizer's names is meant by one of fastai's; any other name as it is."""
    if name in names:
        return name
    return next((own for own in _FASTAI.get(name, ()) if own in names), name)


_BETAS = ("beta1", "beta2")


def _read(group: Mapping[str, Any], name: str) -> Any:
    return group["betas"][_BETAS.index(name)] if name in _BETAS and name not in group else group[name]


def _write(group: dict[str, Any], name: str, value: Any) -> None:
    if name in _BETAS and name not in group:
        betas = list(group["betas"])
        betas[_BETAS.index(name)] = value
        group["betas"] = tuple(betas)
    else:
        group[name] = value


def _multiples(name: str, value: slice, count: int) -> list[float]:
    """Return what fastai makes of a slice."""
    start, stop = value.start, value.stop
    if stop is None:
        raise ValueError(f"set_hypers: {name}={value!r} has no end; write slice(first, last) or slice(last)")
    if not start:
        return [stop / 10] * (count - 1) + [stop]
    if count == 1:
        return [stop]
    return [start * (stop / start) ** (i / (count - 1)) for i in range(count)]


def as_groups(params: Any) -> Any:
    """Turn a list of lists of parameters, fastai's form, into dicts of torch's; leave everything else as it is."""
    if isinstance(params, (Tensor, Mapping)):
        return params
    params = list(params)
    if params and all(_is_list(entry) for entry in params):
        return [{"params": list(entry)} for entry in params]
    return params


def _is_list(entry: Any) -> bool:
    # a tuple of a name and a parameter is a named parameter
    if isinstance(entry, (Tensor, Mapping, str)) or not isinstance(entry, Sequence):
        return False
    return not (isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[0], str))
