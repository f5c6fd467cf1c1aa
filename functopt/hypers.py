"""Hyper-parameters as data: which values a hyper may have, how two compare, and what is said of a wrong one."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import optree
import torch
from torch import Tensor

from functopt import tree
from functopt.tree import Tree, is_schedule

__all__ = [
    "RANGES",
    "Hypers",
    "NestedHypers",
    "check_hyper",
    "check_number",
    "flat_hypers",
    "has_schedule",
    "same_value",
    "show",
    "unknown_hyper",
]

Hypers = Mapping[str, Any]

# The plain numbers that each standard name admits, as (lowest, highest, whether the highest itself is admitted).
RANGES: dict[str, tuple[float, float, bool]] = {
    "lr": (0.0, math.inf, False),
    "momentum": (0.0, math.inf, False),
    "beta1": (0.0, 1.0, False),
    "beta2": (0.0, 1.0, False),
    "decay": (0.0, 1.0, False),
    "eps": (0.0, math.inf, False),
    "eps_root": (0.0, math.inf, False),
    "weight_decay": (0.0, math.inf, False),
    "momentum_decay": (0.0, math.inf, False),
    "max_norm": (0.0, math.inf, True),
    "max_delta": (0.0, math.inf, True),
    "min_norm": (0.0, math.inf, False),
    "max_ratio": (0.0, math.inf, True),
    "trust_coefficient": (0.0, math.inf, False),
    "decay_rate": (0.0, math.inf, False),
    "max_decay": (0.0, 1.0, True),
    "min_scale": (0.0, math.inf, False),
    "clipping_threshold": (0.0, math.inf, True),
    "sync_period": (1.0, math.inf, False),
    "swa_freq": (1.0, math.inf, False),
    "radius": (0.0, math.inf, False),
    "gamma": (0.0, math.inf, False),
    "initial_scale": (0.0, math.inf, False),
    "clip_exponent": (0.0, math.inf, False),
    "beta": (0.0, 1.0, False),
    "beta3": (0.0, 1.0, False),
    "reps_rel": (0.0, math.inf, False),
    "init_step": (0.0, math.inf, False),
    "init_estim_sq_dist": (0.0, math.inf, False),
    "estim_lr0": (0.0, math.inf, False),
    "estim_lr_coef": (0.0, math.inf, False),
    "s_init": (0.0, math.inf, False),
    "s_eps": (0.0, math.inf, False),
    "s_decay": (0.0, math.inf, False),
    "warmup_steps": (0.0, math.inf, False),
    "max_learning_rate": (0.0, math.inf, True),
    "tol": (0.0, math.inf, False),
    "atol": (0.0, math.inf, False),
    "rtol": (0.0, math.inf, False),
    "increase_factor": (1.0, math.inf, True),
    "decrease_factor": (0.0, 1.0, False),
    "slope_rtol": (0.0, 1.0, False),
    "curv_rtol": (0.0, math.inf, True),
    "approx_dec_rtol": (0.0, math.inf, False),
    "stepsize_precision": (0.0, math.inf, False),
    "k": (1.0, math.inf, False),
    "eta": (0.0, math.inf, False),
    "noise_multiplier": (0.0, math.inf, False),
    "clipping": (0.0, math.inf, True),
    "rho": (0.0, 1.0, False),
    "lr_decay": (0.0, math.inf, False),
    "initial_accumulator_value": (0.0, math.inf, False),
    "accumulator_decay": (0.0, 1.0, True),
    "lambd": (0.0, math.inf, False),
    "eta_minus": (0.0, 1.0, False),
    "eta_plus": (1.0, math.inf, False),
    "min_step_size": (0.0, math.inf, False),
    "max_step_size": (0.0, math.inf, True),
    "every_k": (1.0, math.inf, False),
    "max_squared_norm": (0.0, math.inf, True),
    "max_consecutive_errors": (0.0, math.inf, True),
    "patience": (1.0, math.inf, True),
    "cooldown": (0.0, math.inf, False),
    "accumulation_size": (1.0, math.inf, False),
    "update_proj_gap": (1.0, math.inf, False),
    "precondition_frequency": (1.0, math.inf, False),
    "update_interval": (1.0, math.inf, False),
    "clip_threshold": (0.0, math.inf, True),
    "shampoo_beta": (0.0, 1.0, False),
    "adam_lr": (0.0, math.inf, False),
    "adam_beta1": (0.0, 1.0, False),
    "adam_beta2": (0.0, 1.0, False),
    "adam_eps_root": (0.0, math.inf, False),
    "adam_weight_decay": (0.0, math.inf, False),
}


# What other libraries call them.
ELSEWHERE = {
    "learning_rate": "lr",
    "b1": "beta1",
    "b2": "beta2",
    "sqr_mom": "beta2",
    "mom": "momentum",
    "wd": "weight_decay",
    "alpha": "decay",
    "beta": "optimism",
    "l2_norm_clip": "max_norm",
    "global_l2_norm_clip": "max_norm",
    "key": "seed",
}


def check_number(who: str, name: str, value: float) -> None:
    """Check a plain number against the range of its name.

    Raises:
        ValueError: it is NaN or outside the range.
    """
    low, high, closed = RANGES.get(name.rpartition(".")[2], (-math.inf, math.inf, True))
    if not (low <= value < high or (closed and value == high)):
        upper = f"{high:g}]" if closed else f"{high:g})"
        raise ValueError(f"{who}: {name} must be in [{low:g}, {upper}, got {value!r}")


def check_hyper(who: str, name: str, value: Any, params: Tree = None, *, schedules: bool = True) -> None:
    """Check one hyper: numbers in range, 0-d tensors, schedules where a step counter is, a prefix of ``params``.

    Raises:
        TypeError: a leaf of the hyper is none of those.
        ValueError: a number is out of range, a tensor has dimensions, or the tree is no prefix of ``params``.
    """
    if isinstance(value, (float, int)):
        return check_number(who, name, value)
    if tree.layout_of(value) is not None:  # numbers by leaf, beside packed parameters
        return None
    for leaf in optree.tree_leaves(value, is_leaf=is_schedule):
        if is_schedule(leaf):
            if not schedules:
                raise ValueError(
                    f"{who}: {name} is a schedule, but this optimizer has no step counter. Wrap it: "
                    f"scheduled({who}(...)), or give the schedule as a default to chain(...)."
                )
        elif isinstance(leaf, Tensor):
            if leaf.ndim:
                raise ValueError(
                    f"{who}: {name} has shape {list(leaf.shape)}, expected a 0-d tensor. To run several values at "
                    "once, map update over them with torch.func.vmap; for a value per layer, give a tree."
                )
        elif isinstance(leaf, (float, int)):
            check_number(who, name, leaf)
        else:
            raise TypeError(
                f"{who}: {name} is a {type(leaf).__name__}; expected a number, 0-d tensor or schedule"
                f"{_lambda_hint(leaf)}"
            )
    if params is not None and not isinstance(value, Tensor):
        problem = tree.prefix_problem(value, params)
        if problem:
            raise ValueError(f"{who}: {name} is a tree that is no prefix of params: {problem}")
    return None


def _lambda_hint(leaf: Any) -> str:
    return ". A function is no schedule: write it as a NamedTuple with a __call__(step)" if callable(leaf) else ""


def unknown_hyper(name: str, known: Iterable[str], who: str) -> str:
    """Say that a hyper does not exist, which ones do, and which was probably meant."""
    known = sorted(known)
    part, dot, last = name.rpartition(".")
    here = f"{part}{dot}{ELSEWHERE.get(last)}"
    if here in known:
        return f"{who} has no hyper {name!r}; here it is called {here!r}. It has {known}."
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    meant = f" Did you mean {close[0]!r}?" if close else ""
    return f"{who} has no hyper {name!r}; it has {known}.{meant}"


class NestedHypers(Mapping[str, Any]):
    """Hypers that belong to parts, as those of :func:`partition <functopt.partition>` do: a mapping of mappings.

    It answers to dotted names too: ``hypers["body"]["lr"]`` is ``hypers["body.lr"]``.
    """

    def __init__(self, flat: Mapping[str, Any]) -> None:
        self._flat = flat

    def __getitem__(self, name: str) -> Any:
        if name in self._flat:
            return self._flat[name]
        below = {full.removeprefix(f"{name}."): v for full, v in self._flat.items() if full.startswith(f"{name}.")}
        if not below:
            raise KeyError(name)
        return NestedHypers(below)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(full.partition(".")[0] for full in self._flat))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return repr(dict(self))


def flat_hypers(hypers: Hypers, known: Iterable[str] = ()) -> dict[str, Any]:
    """Return hypers by their full names: ``{"body": {"lr": 0.1}}`` is ``{"body.lr": 0.1}``.

    Args:
        hypers: values by name.
        known: the full names that there are. A dict is one of hypers if its name begins one of these, otherwise it is
            a tree of values.
    """
    out: dict[str, Any] = {}
    for name, value in hypers.items():
        nested = isinstance(value, Mapping) and any(full.startswith(f"{name}.") for full in known)
        if nested or isinstance(value, NestedHypers):
            out.update(flat_hypers({f"{name}.{below}": v for below, v in value.items()}, known))
        else:
            out[name] = value
    return out


def has_schedule(value: Tree) -> bool:
    """Tell whether a hyper is a schedule or a tree that holds one."""
    return any(is_schedule(leaf) for leaf in optree.tree_leaves(value, is_leaf=is_schedule))


# Values: compared, hashed and shown


def show(value: Any) -> str:
    """Return a short text for an argument: the code that makes it where that is possible."""
    if isinstance(value, Tensor):
        plain = value.device.type == "cpu" and value.ndim == 0
        return f"tensor({value.tolist() if plain else list(value.shape)})"
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        named: Any = value
        fields = ", ".join(f"{name}={show(v)}" for name, v in zip(named._fields, value, strict=True))
        return f"{type(value).__name__}({fields})"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k!r}: {show(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (tuple, list)):
        inner = ", ".join(show(v) for v in value)
        return f"[{inner}]" if isinstance(value, list) else f"({inner}{',' * (len(value) == 1)})"
    if inspect.isfunction(value):
        return value.__qualname__
    return repr(value)


def same_value(a: Any, b: Any) -> bool:
    """Tell whether two arguments or hypers are equal: trees by structure and leaves, tensors by dtype and entries."""
    if a is b:
        return True
    leaves, spec = optree.tree_flatten(a, none_is_leaf=True)
    others, other_spec = optree.tree_flatten(b, none_is_leaf=True)
    return spec == other_spec and all(_same_leaf(x, y) for x, y in zip(leaves, others, strict=True))


def _same_leaf(x: Any, y: Any) -> bool:
    if isinstance(x, Tensor) or isinstance(y, Tensor):
        both = isinstance(x, Tensor) and isinstance(y, Tensor)
        return x is y or (
            both and x.dtype == y.dtype and x.shape == y.shape and x.device == y.device and torch.equal(x, y)
        )
    # 0 and 0.0 are the same number; True and 1 are not the same choice
    return isinstance(x, bool) == isinstance(y, bool) and x == y


def hashable(value: Any) -> Any:
    """Return something to hash in place of an argument: equal for what :func:`same_value` calls equal."""
    leaves, spec = optree.tree_flatten(value, none_is_leaf=True)
    return spec, tuple((str(leaf.dtype), leaf.shape) if isinstance(leaf, Tensor) else leaf for leaf in leaves)
