"""Checkpoints of torch's own optimizers, to and from those of :class:`StatefulOptimizer <functopt.StatefulOptimizer>`.

Both keep the same moments. Beside them torch keeps the number of steps ``t`` and divides by ``1 - beta**t``; here the
sum of the weights in an average is kept, which is the same number as long as ``beta`` does not change.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from functopt.base import Transform
from functopt.checkpoint import check_state_dict
from functopt.combine import chain
from functopt.control import MARKS
from functopt.hypers import check_hyper
from functopt.stateful import StatefulOptimizer

__all__ = ["from_torch_state_dict", "to_torch_state_dict"]

OptimizerClass = type[torch.optim.Optimizer]

# Which recipe's links make up which of torch's optimizers; fo.sgd and fo.rmsprop leave the trace out without momentum.
_CHAINS: dict[tuple[str, ...], OptimizerClass] = {
    ("add_decayed_weights", "scale_by_lr"): torch.optim.SGD,
    ("add_decayed_weights", "trace", "scale_by_lr"): torch.optim.SGD,
    ("add_decayed_weights", "scale_by_adam", "scale_by_lr"): torch.optim.Adam,
    ("scale_by_adam", "add_decayed_weights", "scale_by_lr"): torch.optim.AdamW,
    ("add_decayed_weights", "scale_by_rms", "scale_by_lr"): torch.optim.RMSprop,
    ("add_decayed_weights", "scale_by_rms", "trace", "scale_by_lr"): torch.optim.RMSprop,
}

# What an option of a link must be, because torch has no other; those of trace and scale_by_rms are compared.
_ONLY: dict[str, Any] = {
    "mask": None, "flip_sign": True, "damped": True, "eps_in_sqrt": False, "bias_correction": False
}  # fmt: skip

# The numbers and choices of a group of torch's, which every checkpoint of the class has.
_OPTIONS: dict[OptimizerClass, tuple[str, ...]] = {
    torch.optim.SGD: ("lr", "weight_decay", "momentum", "dampening", "nesterov"),
    torch.optim.Adam: ("lr", "weight_decay", "betas", "eps", "amsgrad"),
    torch.optim.AdamW: ("lr", "weight_decay", "betas", "eps", "amsgrad"),
    torch.optim.RMSprop: ("lr", "weight_decay", "alpha", "eps", "momentum", "centered"),
}

# How a torch optimizer runs, which is not part of what it computes.
_EXECUTION = ("foreach", "fused", "capturable", "differentiable")

# What torch calls a moment, and what it is called here.
_MOMENTS: dict[OptimizerClass, dict[str, str]] = {
    torch.optim.SGD: {"momentum_buffer": "trace"},
    torch.optim.Adam: {"exp_avg": "mu", "exp_avg_sq": "nu"},
    torch.optim.AdamW: {"exp_avg": "mu", "exp_avg_sq": "nu"},
    torch.optim.RMSprop: {"square_avg": "nu", "grad_avg": "mu", "momentum_buffer": "trace"},
}


class _Form(NamedTuple):
    """Which of torch's optimizers a transform is."""

    torch_class: OptimizerClass
    links: tuple[str, ...]
    options: Mapping[str, Any]  # structure of the links
    hypers: frozenset[str]

    @property
    def name(self) -> str:
        return f"torch.optim.{self.torch_class.__name__}"

    @property
    def adaptive(self) -> bool:
        return "scale_by_adam" in self.links

    @property
    def moments(self) -> dict[str, str]:
        """The moments that there are: their names in torch and here."""
        there = {"trace"} if "trace" in self.links else set()
        if "scale_by_rms" in self.links:
            there |= {"nu", "mu"} if self.options.get("centered") else {"nu"}
        if self.adaptive:
            there |= {"mu", "nu"}
        return {theirs: ours for theirs, ours in _MOMENTS[self.torch_class].items() if ours in there}


def _form_of(tx: Transform, who: str) -> _Form:
    parts = tx._call[1] if tx._call is not None and tx._call[0] is chain else (tx,)
    ascent = [part for part in parts[:1] if part.name == "scale"]
    parts = parts[len(ascent) :]
    links = tuple(part.name for part in parts)
    if links not in _CHAINS:
        counted = " Its hypers are schedules, which a torch optimizer does not have." if tx._counts_steps else ""
        raise ValueError(
            f"{who}: {tx} is none of torch's optimizers; expected fo.sgd, fo.adam, fo.adamw or fo.rmsprop.{counted}"
        )
    options = {n: v for part in parts if part._call for n, v in part._call[2].items() if n not in part.hypers}
    form = _Form(_CHAINS[links], links, options, frozenset(tx.hypers))
    only = {**_ONLY, "nesterov": False} if form.adaptive else _ONLY
    for name, value in options.items():
        if name in only and value != only[name]:
            raise ValueError(f"{who}: {form.name} has no {name}={value!r}, which this optimizer has")
    return form


# From torch


def from_torch_state_dict(optimizer: StatefulOptimizer, state_dict: Mapping[str, Any]) -> None:
    """Load the ``state_dict()`` of torch's SGD, Adam, AdamW or RMSprop; training goes on as torch's would have.

    The hypers of every group come along (``betas`` as ``beta1`` and ``beta2``, ``alpha`` as ``decay``), and so do the
    entries of LR schedulers. Parameters are matched as in ``load_state_dict``; one that never had a gradient starts
    anew, as it does in torch. ``foreach``, ``fused``, ``capturable`` and ``differentiable`` say how torch runs and do
    not matter. Averages that are kept in float32 here for parameters of lower precision keep what torch had of them. A
    group's ``steps`` is the largest number of steps among its parameters; torch's SGD counts none.

    If the betas change later, make the optimizer with ``debias="power"`` for torch's bias correction.

    Args:
        optimizer: a StatefulOptimizer with ``fo.sgd``, ``fo.adam``, ``fo.adamw`` or ``fo.rmsprop``, in the form of the
            checkpoint: with ``momentum``, ``nesterov``, ``centered`` and ``maximize`` where torch's has them.
        state_dict: what ``state_dict()`` of torch's optimizer returned.

    Raises:
        ValueError: it is the state of another optimizer or of another form of it (``amsgrad``, ``nesterov``,
            ``centered``, ``maximize``), or groups, names, hypers or shapes do not match. Nothing is changed then.
        TypeError: an entry is of another type than torch's. Nothing is changed then.

    >>> optimizer = StatefulOptimizer(model.parameters(), fo.adamw())
    >>> from_torch_state_dict(optimizer, torch.optim.AdamW(model.parameters(), lr=0.02).state_dict())
    >>> optimizer.param_groups[0]["lr"]
    0.02
    """
    who = "from_torch_state_dict"
    form = _form_of(optimizer.tx, who)
    check_state_dict(who, state_dict, optimizer.param_groups)
    groups, saved = state_dict["param_groups"], state_dict["state"]
    here = optimizer.state_dict()
    marks = {i: {n: own[n] for n in MARKS if n in own} for i, own in here["state"].items()}
    new_groups, new_state = [], {}
    for number, group in enumerate(groups):
        hypers = _hypers_from(form, group, f"{who}: group {number}")
        counts = [0]
        for i in group["params"]:
            own, count = _state_from(form, saved.get(i) or {}, hypers, f"{who}: parameter {i!r}")
            counts.append(count)
            if own:
                new_state[i] = own
        other = {n: v for n, v in group.items() if n not in _OPTIONS[form.torch_class] and n not in _EXECUTION}
        for name in ("maximize", "decoupled_weight_decay"):
            other.pop(name, None)
        new_groups.append({**other, **hypers, "steps": max(counts)})
    known = {i for group in groups for i in group["params"]}
    if unknown := [i for i in saved if i not in known]:
        raise ValueError(f"{who}: the state has entries {unknown} that no group names")
    if len(new_groups) == len(here["param_groups"]):
        _keep_marks(marks, here["param_groups"], new_groups, new_state, who)
    optimizer.load_state_dict({"state": new_state, "param_groups": new_groups})


def _hypers_from(form: _Form, group: Mapping[str, Any], who: str) -> dict[str, Any]:
    """Return the hypers here for a group of torch's."""
    missing = [name for name in _OPTIONS[form.torch_class] if name not in group]
    if missing:
        raise ValueError(f"{who} has no {missing[0]!r}, so it is not from {form.name}, which this optimizer is")
    hypers: dict[str, Any] = {"lr": group["lr"], "weight_decay": group["weight_decay"]}
    if form.adaptive:
        _must_be(who, "amsgrad", group["amsgrad"], False)
        betas = group["betas"]
        if not isinstance(betas, Sequence) or len(betas) != 2:
            raise TypeError(f"{who}: betas is {betas!r}, expected two numbers")
        decoupled = form.torch_class is torch.optim.AdamW
        if not _is_number(group["weight_decay"], 0):  # without decay both are the same
            _must_be(who, "decoupled_weight_decay", group.get("decoupled_weight_decay", decoupled), decoupled)
        hypers |= {"beta1": betas[0], "beta2": betas[1], "eps": group["eps"], "eps_root": 0.0}
    else:
        if form.torch_class is torch.optim.SGD:
            _must_be(who, "nesterov", group["nesterov"], form.options.get("nesterov", False))
        else:
            hypers |= {"decay": group["alpha"], "eps": group["eps"], "initial_scale": 0.0}
            _must_be(who, "centered", group["centered"], form.options.get("centered", False))
        if "trace" in form.links:
            dampening = group.get("dampening", 0.0)
            hypers |= {"momentum": group["momentum"], "dampening": dampening}
            _check_momentum(who, group["momentum"], dampening)
        elif not _is_number(group["momentum"], 0):
            raise ValueError(
                f"{who} has momentum={group['momentum']!r}; make the optimizer with a momentum other than 0"
            )
    maximize = group.get("maximize", False)
    _must_be(who, "maximize", maximize, maximize if "step_size" in form.hypers else False)
    if "step_size" in form.hypers:
        hypers["step_size"] = -1.0 if maximize else 1.0
    for name, value in hypers.items():
        hypers[name] = value.detach().clone().reshape(()) if isinstance(value, Tensor) and value.numel() == 1 else value
        check_hyper(who, name, hypers[name], schedules=False)
    return hypers


def _check_momentum(who: str, momentum: Any, dampening: Any) -> None:
    if _is_number(momentum, 0) and not _is_number(dampening, 0):
        raise ValueError(
            f"{who} has momentum=0 and dampening={dampening!r}: torch leaves the dampening out then, this optimizer "
            "does not. Set the dampening to 0."
        )


def _must_be(who: str, name: str, got: Any, here: Any) -> None:
    if not isinstance(got, (bool, int)):
        raise TypeError(f"{who}: {name} is a {type(got).__name__}, expected a bool")
    if bool(got) != bool(here):
        raise ValueError(f"{who} has {name}={got!r}, but this optimizer computes {name}={bool(here)!r}")


def _is_number(value: Any, number: float) -> bool:
    return isinstance(value, (float, int)) and value == number


def _state_from(
    form: _Form, own: Mapping[str, Any], hypers: Mapping[str, Any], who: str
) -> tuple[dict[str, Tensor], int]:
    """Return the state here for a parameter's state in torch, nothing if it had no step, and the number of steps."""
    own = {name: value for name, value in own.items() if value is not None}  # SGD's buffer before its first step
    names = {*form.moments} | (set() if form.torch_class is torch.optim.SGD else {"step"})
    buffer = own.get("momentum_buffer")
    if "momentum_buffer" in names and buffer is None:  # torch has one only while the momentum is not 0
        names.discard("momentum_buffer")
    if "trace" not in form.links:
        own.pop("momentum_buffer", None)  # left over from when there was momentum
    if not own:
        return {}, 0
    if {*own} != names:
        differing = sorted(map(str, {*own} ^ names))
        raise ValueError(f"{who}: the state has {sorted(map(str, own))}, which differs from {form.name} in {differing}")
    for name in names - {"step"}:
        if not isinstance(own[name], Tensor):
            raise TypeError(f"{who}: {name} is a {type(own[name]).__name__}, expected a tensor")
    count = _step(own["step"], who) if "step" in own else 0
    if "step" in own and not count:
        return {}, 0
    new: dict[str, Tensor] = {}
    for theirs, ours in form.moments.items():
        if ours == "trace":
            # without a step count, as in SGD, it is only known that something is in the sum
            weight = _undamped(float(hypers["momentum"]), count) if "step" in own else 1.0
        else:
            beta = hypers["decay" if "decay" in hypers else {"mu": "beta1", "nu": "beta2"}[ours]]
            weight = 1 - float(beta) ** count
        if theirs in own:
            new |= {f"{ours}.total": own[theirs], f"{ours}.weight": torch.tensor(weight, dtype=torch.float64)}
        else:
            like = next(iter(own[name] for name in names - {"step"}))
            new |= {f"{ours}.total": torch.zeros_like(like), f"{ours}.weight": like.new_zeros(())}
    if form.options.get("debias") == "power":
        new["count"] = torch.tensor(float(count), dtype=torch.float64)
    return new, count


def _step(value: Any, who: str) -> int:
    if not (isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.numel() == 1)):
        raise TypeError(f"{who}: step is a {type(value).__name__}, expected a number")
    step = float(value)
    if not (step >= 0 and step == math.floor(step)):
        raise ValueError(f"{who}: step is {step!r}, expected a number of steps")
    return int(step)


def _undamped(momentum: float, count: int) -> float:
    """Return the sum of the coefficients in a sum ``m ← momentum·m + g`` of so many terms."""
    return float(count) if momentum == 1 else (1 - momentum**count) / (1 - momentum)


def _keep_marks(
    marks: Mapping[int, Mapping[str, bool]],
    groups_here: Sequence[Mapping[str, Any]],
    groups: Sequence[Mapping[str, Any]],
    state: dict[Any, Any],
    who: str,
) -> None:
    """Put the marks of the parameters here into a state_dict, as torch's have none."""
    for here, group in zip(groups_here, groups, strict=True):
        names, theirs = here.get("param_names"), group.get("param_names")
        ids = dict(zip(theirs, group["params"], strict=False)) if names and theirs else None
        for place, i in enumerate(here["params"]):
            key = names[place] if names else place
            other = ids.get(key) if ids is not None else next(iter(group["params"][place : place + 1]), None)
            if marks.get(i):
                _check_marks(who, i, marks[i], group)
                state[other] = {**state.get(other, {}), **marks[i]}


def _check_marks(who: str, i: int, marks: Mapping[str, bool], group: Mapping[str, Any]) -> None:
    if not marks.get("do_wd", True) and not _is_number(group["weight_decay"], 0):
        raise ValueError(
            f"{who}: parameter {i} has the mark do_wd=False, which torch does not have: put it into a group with "
            "weight_decay=0"
        )


# To torch


def to_torch_state_dict(optimizer: StatefulOptimizer, torch_class: OptimizerClass | None = None) -> dict[str, Any]:
    """Return a ``state_dict`` that torch's SGD, Adam, AdamW or RMSprop loads, and with which it goes on as this would.

    Torch keeps the number of steps of a parameter, not the weights of its averages. With ``debias="power"`` the number
    is kept here too. Otherwise it is the group's ``steps`` if the weights are those of so many steps, else (for a
    parameter that sat some out) it follows from the weights. That is exact until the weights are 1 up to rounding,
    from where on no bias is left to correct and any large number will do.

    What is kept in float32 here for parameters of lower precision torch keeps in the precision of the parameters, so
    that there it goes on only as exactly as its own checkpoint would.

    Args:
        optimizer: a StatefulOptimizer with ``fo.sgd``, ``fo.adam``, ``fo.adamw`` or ``fo.rmsprop``.
        torch_class: the class that will load it; by default the one that the transform is. ``torch.optim.Adam`` takes
            ``fo.adamw`` too (with ``decoupled_weight_decay``), and where nothing decays AdamW takes ``fo.adam``.

    Raises:
        ValueError: the transform is none of those, or has what torch does not: schedules, a mask, a hyper with a value
            for each parameter, the mark ``do_wd=False``; or the betas have changed, so that no number of steps gives
            the weights.
    """
    who = "to_torch_state_dict"
    form = _form_of(optimizer.tx, who)
    saved = optimizer.state_dict()
    template = form.torch_class([torch.nn.Parameter(torch.empty(1))], lr=0.0).defaults  # pyright: ignore[reportCallIssue]
    groups, state = [], {}
    for number, group in enumerate(saved["param_groups"]):
        options = _options_for(form, group, f"{who}: group {number}")
        other = {n: v for n, v in group.items() if n not in form.hypers and n != "steps"}
        groups.append({**template, **options, **other})
        for place, i in enumerate(group["params"]):
            names = group.get("param_names")
            where = f"{who}: parameter {names[place] if names else i!r}"
            own = saved["state"].get(i, {})
            _check_marks(who, i, own, group)
            made = _state_for(form, own, options, group.get("steps", 0), where)
            if made:
                like = optimizer.param_groups[number]["params"][place]
                state[i] = {n: v if n == "step" else v.to(like.dtype) for n, v in made.items()}
    _check_class(form, torch_class, groups, who)
    return {"state": state, "param_groups": groups}


def _check_class(
    form: _Form, torch_class: OptimizerClass | None, groups: Iterable[Mapping[str, Any]], who: str
) -> None:
    torch_class = torch_class or form.torch_class
    # AdamW is a subclass of Adam that decouples the decay, which Adam may do
    same = issubclass(torch_class, form.torch_class) and not issubclass(torch_class, torch.optim.AdamW)
    decays = any(group["weight_decay"] != 0 for group in groups)
    decoupled = form.torch_class is torch.optim.AdamW or (form.adaptive and not decays)
    if not (same or (decoupled and issubclass(torch_class, torch.optim.Adam))):
        raise ValueError(f"{who}: this optimizer is {form.name}, whose state {torch_class.__name__} cannot go on with")


def _options_for(form: _Form, group: Mapping[str, Any], who: str) -> dict[str, Any]:
    """Return what a group of torch's has for a group here."""
    values: dict[str, Any] = {}
    for name in form.hypers:
        value = group[name]
        if not isinstance(value, (float, int, Tensor)):
            raise ValueError(f"{who}: {name} is a {type(value).__name__}; torch has one number for each group")
        values[name] = value.detach().clone() if isinstance(value, Tensor) and name == "lr" else value
        if isinstance(value, Tensor) and name != "lr":  # which torch takes from nobody else
            values[name] = float(value)
    options = {"lr": values["lr"], "weight_decay": values["weight_decay"]}
    for name in ("eps_root", "initial_scale"):
        if values.get(name, 0) != 0:
            raise ValueError(f"{who} has {name}={values[name]!r}, which {form.name} does not have")
    if form.adaptive:
        options |= {"betas": (values["beta1"], values["beta2"]), "eps": values["eps"]}
    elif form.torch_class is torch.optim.RMSprop:
        options |= {"alpha": values["decay"], "eps": values["eps"], "centered": form.options.get("centered", False)}
    if "trace" in form.links:
        options["momentum"] = values["momentum"]
        _check_momentum(who, values["momentum"], values["dampening"])
        if form.torch_class is torch.optim.SGD:
            options |= {"dampening": values["dampening"], "nesterov": form.options.get("nesterov", False)}
        elif values["dampening"] != 0 or form.options.get("nesterov"):
            raise ValueError(f"{who} has dampening or nesterov, which {form.name} does not have")
    if abs(values.get("step_size", 1.0)) != 1:
        raise ValueError(f"{who} has step_size={values['step_size']!r}, which {form.name} does not have")
    return {**options, "maximize": values.get("step_size", 1.0) == -1}


def _state_for(
    form: _Form, own: Mapping[str, Any], options: Mapping[str, Any], steps: int, who: str
) -> dict[str, Tensor]:
    """Return a parameter's state in torch, nothing if it has had no step."""
    weights = {ours: float(own[f"{ours}.weight"]) for ours in form.moments.values()}
    if not any(weights.values()):
        return {}
    state = {theirs: own[f"{ours}.total"] for theirs, ours in form.moments.items() if weights[ours]}
    if form.torch_class is torch.optim.SGD:
        return state
    if "count" in own:
        count: float | None = float(own["count"])
    else:
        betas = {"mu": options["betas"][0], "nu": options["betas"][1]} if form.adaptive else {"nu": options["alpha"]}
        averages = [(weights[name], beta, torch.finfo(own[f"{name}.weight"].dtype).eps) for name, beta in betas.items()]
        count = _count(averages, steps, strict=form.adaptive)
    if count is None:
        raise ValueError(
            f"{who}: no number of steps with the betas {options['betas']} gives the weights {weights}, so the betas "
            "have changed, and torch, which divides by 1 - beta**step, would go on differently. Train with "
            "debias='power' to be able to go on in torch."
        )
    # as torch.optim keeps it
    dtype = torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32
    return {"step": torch.tensor(float(count), dtype=dtype), **state}


def _count(averages: Sequence[tuple[float, float, float]], steps: int, *, strict: bool) -> int | None:
    """Return the number of steps after which averages with these (weight, beta, epsilon) have these weights."""
    guesses = [steps] if steps else []
    for weight, beta, eps in sorted(averages, key=lambda average: -average[1]):
        if beta > 0:
            left = max(1 - weight, eps)  # what is below the rounding is not known
            guesses.append(max(1, round(math.log(left) / math.log(beta))))
    guesses.append(1)  # all betas are 0

    def fits(count: int) -> bool:
        # every step rounds the weight a few times, and forgets all but beta of those before; 1 - beta is rounded
        own = sys.float_info.epsilon
        rounding = (4 * (eps * min(count, 1 / (1 - beta)) * weight + own) for weight, beta, eps in averages)
        return all(abs(1 - b**count - w) <= r for (w, b, _), r in zip(averages, rounding, strict=True))

    fitting = next((count for count in guesses if fits(count)), None)
    # where the weights are not used, as in RMSProp, any number will do
    return fitting if fitting is not None or strict else guesses[0]
