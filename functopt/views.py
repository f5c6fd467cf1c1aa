"""What StatefulOptimizer shows of itself in the form of torch's optimizers: groups, and the state of each parameter."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor

from functopt.control import MARKS
from functopt.sharded import assign

__all__ = ["Group", "ParamState", "State"]


class State(dict[Any, dict[str, Any]]):
    """The states of the parameters. As with torch's optimizers, one of which nothing is known has an empty state."""

    def __missing__(self, param: Any) -> dict[str, Any]:
        return {}


class ParamState(dict):
    """The tensors and marks of one parameter. What is assigned to a tensor is copied into it."""

    def __init__(self, marks: dict[Any, dict[str, bool]], key: Any) -> None:
        super().__init__(marks.get(key, {}))
        self._all, self._key = marks, key

    @torch.no_grad()
    def __setitem__(self, name: str, value: Any) -> None:
        if name in MARKS:
            super().__setitem__(name, bool(value))
            self._all.setdefault(self._key, {})[name] = bool(value)
            return
        here = self.get(name)
        if here is None or not isinstance(value, Tensor) or value.shape != here.shape:
            shape = "" if here is None else f" but to a tensor of shape {list(here.shape)}"
            raise KeyError(
                f"StatefulOptimizer: {name!r} cannot be set{shape}: state[p] has the entries of the optimizer, and the "
                f"marks {list(MARKS)}."
            )
        if value is not here:  # Lightning assigns what it has moved to a device, which mostly is what there was
            assign(here, value)

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)  # a copy is no view


class Group(dict):
    """A param group in which torch's ``betas`` stands for ``beta1`` and ``beta2``."""

    def __init__(self, entries: Mapping[str, Any]) -> None:
        super().__init__()
        self.update(entries)

    def __getitem__(self, key: str) -> Any:
        if key == "betas":
            return (self["beta1"], self["beta2"])
        return super().__getitem__(key)

    def __setitem__(self, key: str, value: Any) -> None:
        if key == "betas":
            self["beta1"], self["beta2"] = value
        else:
            super().__setitem__(key, value)

    # dict's own do not go through the two methods above
    __contains__ = Mapping.__contains__
    get = Mapping.get  # pyright: ignore[reportAssignmentType]
    setdefault = MutableMapping.setdefault
    update = MutableMapping.update
