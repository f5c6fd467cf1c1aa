"""torch's own optimizers, as pure transforms or with fastai's interface."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from functopt.base import Transform
from functopt.control import MARKS, GroupControl, as_groups
from functopt.hypers import check_hyper
from functopt.optimizers import (
    adadelta,
    adafactor,
    adagrad,
    adam,
    adamax,
    adamw,
    asgd,
    muon,
    nadam,
    radam,
    rmsprop,
    rprop,
    sgd,
)

__all__ = ["from_torch"]

OptimizerClass = type[torch.optim.Optimizer]


def from_torch(torch_class: OptimizerClass, params: Any = None, **kwargs: Any) -> Any:
    """Return what computes as one of torch's optimizers does, as a pure transform or with more ways to steer it.

    Without ``params``, a :class:`Transform <functopt.Transform>`, for every class of ``torch.optim`` but LBFGS, whose
    one step takes many (:func:`lbfgs <functopt.lbfgs>` takes one), and SparseAdam. Options that say how torch runs
    (``foreach``, ``fused``, ``capturable``, ``differentiable``) do not matter.

    With ``params``, an optimizer that *is* a ``torch_class`` (any subclass of ``torch.optim.Optimizer``) and runs its
    code, for which all schedulers and checkpoints of it work. It also has the methods of fastai's optimizers (see
    :class:`GroupControl <functopt.control.GroupControl>`): ``hypers``, ``set_hypers``, ``freeze_to``, ``clear_state``,
    and ``state[p]["do_wd"] = False`` for a parameter that does not decay. Its ``state_dict`` has torch's entries only.

    Args:
        torch_class: the class of the optimizer.
        params: what it takes, or lists of parameters, one for each group.
        **kwargs: its arguments. With ``params`` a list or a slice gives every group its own value, as in
            ``set_hypers``.

    Raises:
        TypeError: ``torch_class`` is no class of optimizers, or does not take an argument.
        ValueError: there is no transform for the class, or the class refuses a number.

    >>> tx = from_torch(torch.optim.AdamW, lr=3e-4)
    >>> body, head = nn.Linear(2, 3), nn.Linear(3, 1)
    >>> optimizer = from_torch(torch.optim.AdamW, [[*body.parameters()], [*head.parameters()]], lr=slice(1e-5, 1e-3))
    >>> [group["lr"] for group in optimizer.param_groups]
    [1e-05, 0.001]
    """
    if not (isinstance(torch_class, type) and issubclass(torch_class, torch.optim.Optimizer)):
        raise TypeError(f"from_torch: expected a subclass of torch.optim.Optimizer, got {torch_class!r}")
    if params is None:
        return _transform(torch_class, kwargs)
    return _controlled(torch_class)(params, **kwargs)


# The pure form


def _transform(torch_class: OptimizerClass, kwargs: dict[str, Any]) -> Transform:
    if torch_class not in _FORMS:
        names = ", ".join(sorted(known.__name__ for known in _FORMS))
        raise ValueError(
            f"from_torch: {torch_class.__name__} has no functional form here; there are those of {names}. Give "
            "params to get an optimizer that runs torch's code."
        )
    # the class fills in its defaults and checks the numbers
    made: Callable[..., torch.optim.Optimizer] = torch_class
    options = made([torch.nn.Parameter(torch.zeros(1, 1))], **kwargs).defaults
    return _FORMS[torch_class](options)


def _adam(options: Mapping[str, Any]) -> Transform:
    beta1, beta2 = options["betas"]
    form = adamw if options["decoupled_weight_decay"] else adam
    return form(
        options["lr"], beta1, beta2, options["eps"], options["weight_decay"],
        debias="weight" if options["amsgrad"] else "power", amsgrad=options["amsgrad"], maximize=options["maximize"],
    )  # fmt: skip


def _adamax(options: Mapping[str, Any]) -> Transform:
    beta1, beta2 = options["betas"]
    return adamax(options["lr"], beta1, beta2, options["eps"], options["weight_decay"], maximize=options["maximize"])


def _same_names(recipe: Callable[..., Transform], *names: str) -> Callable[[Mapping[str, Any]], Transform]:
    return lambda options: recipe(**{name: options[name] for name in (*names, "lr", "weight_decay", "maximize")})


def _rprop(options: Mapping[str, Any]) -> Transform:
    return rprop(options["lr"], *options["etas"], *options["step_sizes"], maximize=options["maximize"])


def _muon(options: Mapping[str, Any]) -> Transform:
    return muon(
        options["lr"], options["momentum"], options["eps"], options["weight_decay"],
        nesterov=options["nesterov"], ns_coeffs=options["ns_coefficients"], ns_steps=options["ns_steps"],
        ns_dtype=torch.bfloat16, adjust_lr_fn=options["adjust_lr_fn"] or "original",
    )  # fmt: skip


def _nadam(options: Mapping[str, Any]) -> Transform:
    beta1, beta2 = options["betas"]
    return nadam(
        options["lr"], beta1, beta2, options["eps"], options["weight_decay"], options["momentum_decay"],
        decoupled=options["decoupled_weight_decay"], maximize=options["maximize"],
    )  # fmt: skip


def _radam(options: Mapping[str, Any]) -> Transform:
    beta1, beta2 = options["betas"]
    return radam(
        options["lr"], beta1, beta2, options["eps"], options["weight_decay"],
        decoupled=options["decoupled_weight_decay"], maximize=options["maximize"],
    )  # fmt: skip


def _rmsprop(options: Mapping[str, Any]) -> Transform:
    return rmsprop(
        options["lr"], options["alpha"], options["eps"], options["weight_decay"], options["momentum"],
        centered=options["centered"], maximize=options["maximize"],
    )  # fmt: skip


def _sgd(options: Mapping[str, Any]) -> Transform:
    return sgd(
        options["lr"], options["momentum"], options["dampening"], options["weight_decay"],
        nesterov=options["nesterov"], maximize=options["maximize"],
    )  # fmt: skip


def _adafactor(options: Mapping[str, Any]) -> Transform:
    eps, min_scale = options["eps"]
    return adafactor(
        options["lr"], -options["beta2_decay"], eps, options["weight_decay"], options["d"], min_scale,
        maximize=options["maximize"],
    )  # fmt: skip


_FORMS: dict[OptimizerClass, Callable[[Mapping[str, Any]], Transform]] = {
    torch.optim.Adadelta: _same_names(adadelta, "rho", "eps"),
    torch.optim.Adafactor: _adafactor,
    torch.optim.Adagrad: _same_names(adagrad, "lr_decay", "initial_accumulator_value", "eps"),
    torch.optim.Adam: _adam,
    torch.optim.AdamW: _adam,
    torch.optim.Adamax: _adamax,
    torch.optim.ASGD: _same_names(asgd, "lambd", "alpha", "t0"),
    torch.optim.Muon: _muon,
    torch.optim.NAdam: _nadam,
    torch.optim.RAdam: _radam,
    torch.optim.RMSprop: _rmsprop,
    torch.optim.Rprop: _rprop,
    torch.optim.SGD: _sgd,
}


# The optimizer with more ways to steer it


@functools.cache
def _controlled(torch_class: OptimizerClass) -> Any:
    """Return the subclass of a class of optimizers that has fastai's methods."""
    entries = {"_torch_class": torch_class, "__doc__": torch_class.__doc__, "__module__": torch_class.__module__}
    return type(torch_class.__name__, (_Controlled, torch_class), entries)


def _blank(torch_class: OptimizerClass) -> Any:
    cls = _controlled(torch_class)
    return cls.__new__(cls)


class _Controlled(GroupControl):
    """What stands before the class of an optimizer to give it fastai's methods."""

    _torch_class: Any
    defaults: dict[str, Any]

    def __init__(self, params: Any, **kwargs: Any) -> None:
        later = {name: value for name, value in kwargs.items() if isinstance(value, (slice, list))}
        self._given = {name: value for name, value in kwargs.items() if name not in later}
        self._marks: dict[Tensor, dict[str, bool]] = {}
        super().__init__(as_groups(params), **self._given)  # pyright: ignore[reportCallIssue]
        self.set_hypers(**later)

    def step(self, closure: Any = None, **kwargs: Any) -> Any:
        """Take a step of the torch optimizer, in which parameters marked with ``do_wd=False`` do not decay."""
        step = self._torch_class.step
        if getattr(step, "hooked", False):  # torch has put the hooks around this method already
            step = step.__wrapped__
        spared = {id(param) for param, own in self._take_marks().items() if not own.get("do_wd", True)}
        groups = self.param_groups
        if not spared:
            return step(self, closure, **kwargs)
        self.param_groups = [part for group in groups for part in _split(group, spared)]
        try:
            return step(self, closure, **kwargs)
        finally:
            self.param_groups = groups

    def clear_state(self) -> None:
        """Make the state what it was before the first step; parameters, hypers and marks stay."""
        self._take_marks()
        groups = [dict(group) for group in self.param_groups]
        self.state = self._torch_class(groups, **self._given).state  # some have a state from the start

    def state_dict(self) -> dict[str, Any]:
        """Return what the torch optimizer's own method does."""
        self._take_marks()
        return super().state_dict()  # pyright: ignore[reportAttributeAccessIssue]

    def _take_marks(self) -> dict[Tensor, dict[str, bool]]:
        """Return the marks, having taken those out of the state that were set there: torch's code expects none."""
        for param, own in self.state.items():
            for name in MARKS:
                if name in own:
                    self._marks.setdefault(param, {})[name] = bool(own.pop(name))
        return self._marks

    def _marks_of(self, param: Tensor) -> dict[str, bool]:
        if not any(param is own for group in self.param_groups for own in group["params"]):
            raise KeyError("mark: the parameter does not belong to this optimizer")
        return self._take_marks().setdefault(param, {})

    def _hyper_names(self) -> list[str]:
        numbers = [
            n for n, v in self.defaults.items() if isinstance(v, (float, int, Tensor)) and not isinstance(v, bool)
        ]
        return numbers + (["beta1", "beta2"] if "betas" in self.defaults else [])

    def _check_hyper(self, name: str, value: Any) -> None:
        check_hyper(self._torch_class.__name__, name, value, schedules=False)

    def __getstate__(self) -> dict[str, Any]:
        own = {"frozen_idx": self.frozen_idx, "_marks": self._take_marks(), "_given": self._given}
        theirs: Any = super().__getstate__()
        return {**theirs, **own}

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _blank, (self._torch_class,), self.__getstate__()


def _split(group: dict[str, Any], spared: set[int]) -> list[dict[str, Any]]:
    """Split a group into the parameters that decay and those that do not."""
    if not group.get("weight_decay"):
        return [group]
    parts = []
    for without in (False, True):
        params = [param for param in group["params"] if (id(param) in spared) == without]
        if params:
            parts.append({**group, "params": params, **({"weight_decay": 0.0} if without else {})})
    return parts
