"""Ema: the moving average that every adaptive method is made of."""

from __future__ import annotations

from typing import NamedTuple

import torch

from functopt import tree
from functopt.base import state_class
from functopt.numerics import add_scaled, lerp, once
from functopt.tree import Tree

__all__ = ["Ema"]


@state_class
class Ema(NamedTuple):
    """A running sum, and the sum of the coefficients in it.

    ``total ← decay·total + c·value`` and ``weight ← decay·weight + c``, both from 0, with ``c = 1 - decay`` (damped) or
    a coefficient of your own; ``c = 1`` is the undamped sum of classic momentum.

    ``mean = total / weight`` is then the true weighted average of the values seen so far. For a constant decay the
    damped weight is ``1 - decay^t``, so the mean is exactly Adam's bias-corrected moment (Kingma & Ba, 2015); when the
    decay is scheduled it stays an average, which the power formula does not, and undamped it is the same average.
    """

    total: Tree  # like the parameters
    weight: Tree  # 0-d, or one for each group that the decay tells apart

    @staticmethod
    def zeros(params: Tree, *hypers: Tree, accumulate: bool = False, dtype: torch.dtype | None = None) -> Ema:
        """Return the average of nothing yet.

        Args:
            params: gives structure, shapes, device and dtype.
            *hypers: the defaults of the decay and of the coefficient. Only their structure counts: one weight is kept
                for each group that they tell apart.
            accumulate: keep the sum in float32 at least, as second moments need.
            dtype: keep the sum in this dtype.
        """
        return Ema(tree.zeros_like(params, dtype, accumulate=accumulate), tree.scalars(params, *hypers))

    def update(self, values: Tree, decay: Tree, coefficient: Tree | None = None) -> Ema:
        """Return the average with one more value in it.

        Args:
            values: a tree like ``total``.
            decay: what is kept of the past, in [0, 1): a number, a 0-d tensor or a prefix tree of such.
            coefficient: the weight of the new value; by default ``1 - decay``.

        Raises:
            ValueError: the decay has more structure than the state was built for.
        """
        if tree.prefix_problem(decay, self.weight):
            raise ValueError(
                f"Ema: the decay has the structure {tree.describe(decay)}, but this state was built for "
                f"{tree.describe(self.weight)}. A decay shapes the state, so give its structure to the default before "
                "init: tx.with_hypers(...), with the values of each group."
            )
        if coefficient is None:
            total = tree.map(lambda t, v, d: lerp(t, v, 1 - d), self.total, values, decay)
            weight = tree.map(lambda w, d: (d * w + (1 - d)).to(w.dtype), self.weight, decay)
        else:
            total = tree.map(
                lambda t, v, d, c: add_scaled(d * t, c, v).to(t.dtype), self.total, values, decay, coefficient
            )
            weight = tree.map(lambda w, d, c: (d * w + c).to(w.dtype), self.weight, decay, coefficient)
        return Ema(total, weight)

    @property
    def mean(self) -> Tree:
        """``total / weight``, a tree like the parameters; NaN before the first update."""
        return tree.map(lambda t, r: t * r, self.total, tree.map(lambda w: once(1 / w), self.weight))
