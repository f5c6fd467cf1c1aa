"""Parameter groups by name, for :class:`StatefulOptimizer <functopt.StatefulOptimizer>` and torch's optimizers."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

__all__ = ["bias_and_norm", "by_name", "no_decay_on_bias_and_norm"]

Predicate = Callable[[str, Tensor], bool]


def by_name(model: nn.Module, *groups: tuple[str | Predicate, Mapping[str, Any]], **rest: Any) -> list[dict[str, Any]]:
    """Return groups of a model's parameters, with their names.

    Args:
        model: the model; parameters that do not require gradients are left out of no group.
        *groups: pairs of what is in a group and of its hypers. What is in it is a pattern with the wildcards of file
            names (``"head.*"``, ``"*.bias"``), or a function ``(name, param) -> bool``. Who fits several belongs to
            the first.
        **rest: the hypers of the parameters that no pattern fits; their group comes last, if there are any.

    Raises:
        ValueError: a pattern fits no parameter that is still free.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    >>> groups = by_name(model, ("1.*", {"lr": 1e-2}), ("*.bias", {"weight_decay": 0.0}))
    >>> [[name for name, _ in group["params"]] for group in groups]
    [['1.weight', '1.bias'], ['0.bias'], ['0.weight']]
    """
    found: list[list[tuple[str, Tensor]]] = [[] for _ in groups]
    others = []
    for name, param in model.named_parameters():
        fitting = (own for own, (what, _) in zip(found, groups, strict=True) if _fits(what, name, param))
        next(fitting, others).append((name, param))
    for own, (what, _) in zip(found, groups, strict=True):
        if not own:
            names = [name for name, _ in model.named_parameters()]
            raise ValueError(f"by_name: {what!r} fits no parameter that is not in a group already; there are {names}")
    out = [{"params": own, **hypers} for own, (_, hypers) in zip(found, groups, strict=True)]
    return [*out, {"params": others, **rest}] if others else out


def _fits(what: str | Predicate, name: str, param: Tensor) -> bool:
    return fnmatch.fnmatchcase(name, what) if isinstance(what, str) else what(name, param)


def no_decay_on_bias_and_norm(model: nn.Module, **hypers: Any) -> list[dict[str, Any]]:
    """Return two groups: the parameters that decay, and biases and those of normalisation layers, which do not.

    Args:
        model: the model.
        **hypers: of both groups; the second one's ``weight_decay`` is 0.
    """
    spared = {id(param) for param in bias_and_norm(model)}
    return by_name(model, (lambda _, p: id(p) not in spared, hypers), **{**hypers, "weight_decay": 0.0})


def bias_and_norm(model: nn.Module, *, bias: bool = True) -> list[Tensor]:
    """Return the parameters of normalisation layers, and every other parameter called ``bias``.

    Args:
        model: the model.
        bias: if false, those of normalisation layers only.
    """
    norms = (
        nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm,
    )  # fmt: skip
    out = []
    for module in model.modules():
        for name, param in module.named_parameters(recurse=False):
            if isinstance(module, norms) or (bias and name == "bias"):
                out.append(param)
    return out
