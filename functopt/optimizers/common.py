"""What recipes share: where weight decay and the learning rate stand, and what the number 0 leaves out."""

from __future__ import annotations

from typing import Any

from functopt.base import Transform
from functopt.combine import chain
from functopt.transforms.decay import add_decayed_weights
from functopt.transforms.moments import is_zero
from functopt.transforms.scaling import scale, scale_by_lr

__all__ = ["Hyper", "compose", "is_zero"]

Hyper = Any


def compose(
    preconditioner: list[Transform],
    lr: Hyper,
    weight_decay: Hyper,
    *,
    decoupled: bool,
    mask: Any = None,
    maximize: bool = False,
) -> Transform:
    """Chain a preconditioner with weight decay, after it (decoupled) or before it (L2), and the learning rate."""
    decay = [add_decayed_weights(weight_decay, mask=mask)]
    ascent = [scale(-1.0)] if maximize else []
    inner = [*preconditioner, *decay] if decoupled else [*decay, *preconditioner]
    return chain(*ascent, *inner, scale_by_lr(lr))
