"""What the members are ranked by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from functopt.tree import Tree

__all__ = ["Evaluation", "join"]


class Evaluation:
    """Runs ``eval_fn`` for all members, and keeps what it returned at each call."""

    def __init__(self, eval_fn: Callable[[Tree], Any] | None, mode: str, metric: str | None, randomness: str) -> None:
        self.eval_fn = eval_fn
        self.mode = mode
        self.ranked_by = metric or ("loss" if eval_fn is None else "")
        self.randomness = randomness
        self.steps: list[int] = []
        self.history: dict[str, list[Tensor]] = {}

    def __call__(self, params: Tree, step: int) -> None:
        if self.eval_fn is None:
            return
        with torch.no_grad():
            out = torch.func.vmap(self.eval_fn, randomness=self.randomness)(params)
        metrics = out if isinstance(out, dict) else {_metric_name(self.eval_fn): out}
        if not self.ranked_by:
            self.ranked_by = next(iter(metrics))
        if self.ranked_by not in metrics:
            raise KeyError(f"sweep: eval_fn returned no metric {self.ranked_by!r}; it returned {sorted(metrics)}")
        self.steps.append(step)
        for name, values in metrics.items():
            if values.ndim != 1:
                raise ValueError(f"sweep: the metric {name!r} has shape {list(values.shape[1:])} for a member, not 0-d")
            self.history.setdefault(name, []).append(values.double())

    def final(self, losses: Tensor) -> dict[str, Tensor]:
        if self.eval_fn is None:
            return {"loss": losses[-max(1, len(losses) // 10) :].double().mean(0)}
        return {name: values[-1].cpu() for name, values in self.history.items()}

    def best(self, losses: Tensor) -> dict[str, Tensor]:
        """Return each member's values at the evaluation where the ranking metric was best."""
        if self.eval_fn is None:
            return self.final(losses)
        ranking = torch.stack(self.history[self.ranked_by])
        worst = -torch.inf if self.mode == "max" else torch.inf
        at = ranking.nan_to_num(nan=worst) if self.mode == "max" else -ranking.nan_to_num(nan=worst)
        rows = at.argmax(0, keepdim=True)
        return {name: torch.stack(values).gather(0, rows)[0].cpu() for name, values in self.history.items()}


def join(parts: Sequence[Evaluation], count: int) -> Evaluation:
    """Put the evaluations of several groups of members, made at the same steps, beside each other, ``count`` in all."""
    whole = parts[0]
    for name in whole.history:
        together = zip(*(part.history[name] for part in parts), strict=True)
        whole.history[name] = [torch.cat(values)[:count] for values in together]
    return whole


def _metric_name(eval_fn: Callable[..., Any]) -> str:
    name = getattr(eval_fn, "__name__", "metric")
    return name if name.isidentifier() and name != "<lambda>" else "metric"
