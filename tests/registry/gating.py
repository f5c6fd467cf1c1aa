"""The rows of wrappers that choose what is updated, and when."""

from __future__ import annotations

from typing import Any

import torch

import functopt as fo
from functopt import tree
from registry.problem import Row, by_lr, matrices, with_loss


def kinds(params: Any) -> Any:
    """Labels: what has two dimensions or more, and the rest."""
    return tree.map(lambda p: "wide" if p.ndim > 1 else "narrow", params)


def early(step: torch.Tensor) -> torch.Tensor:
    return step < 5


def every_other(step: torch.Tensor) -> torch.Tensor:
    return step % 2 == 0


def while_large(step: torch.Tensor, value: torch.Tensor, **others: Any) -> torch.Tensor:
    return value > 10.0


def scheduled_sum() -> fo.Transform:
    inner = fo.adam(fo.linear_schedule(0.1, 0.05, 3))
    return fo.multi_steps(inner, fo.linear_schedule(1.0, 3.0, 2), use_grad_mean=False)


def plateau() -> fo.Transform:
    reduce = fo.reduce_on_plateau(0.5, 2, 0.05, 0.1, 1, 2, 0.01, 0.001)
    return with_loss(fo.chain(fo.sgd(0.1, 0.9), reduce))


PARTS = {"wide": fo.lamb(0.1), "narrow": fo.chain(fo.clip_by_global_norm(0.5), fo.adamw(0.1))}
WRITING = {"wide": fo.lookahead(fo.adam(0.1), sync_period=2), "narrow": fo.sgd(0.1, 0.9)}
SCHEDULED = {"wide": fo.sgd(fo.linear_schedule(0.1, 0.0, 5)), "narrow": fo.freeze()}

ROWS: list[Row] = [
    # the steps are counted for all parameters together, so that every_k cannot differ between them
    Row("multi_steps", lambda: fo.multi_steps(fo.adam(0.1), 2), couples=True),
    Row("multi_steps/sum", scheduled_sum, lr_scales_all=False),
    Row("multi_steps/lookahead", lambda: fo.multi_steps(fo.lookahead(fo.sgd(0.1), sync_period=2), 2), couples=True),
    Row(
        "multi_steps/skip_not_finite",
        lambda: fo.multi_steps(fo.sgd(0.1, 0.9), 2, should_skip_update_fn=fo.skip_not_finite),
        couples=True,
    ),
    Row(
        "multi_steps/skip_large_updates",
        lambda: fo.multi_steps(
            fo.adam(0.1), 2, should_skip_update_fn=fo.skip_large_updates, max_squared_norm=34.0
        ),  # three of the eight gradients are larger
        couples=True,
    ),
    Row("apply_if_finite", lambda: fo.apply_if_finite(fo.adamw(0.1)), couples=True),
    Row("apply_if_finite/lookahead", lambda: fo.apply_if_finite(fo.lookahead(fo.sgd(0.1, 0.9), 2), 1), couples=True),
    Row("conditionally_transform", lambda: by_lr(fo.conditionally_transform(fo.scale_by_adam(), early))),
    Row(
        "conditionally_transform/value",
        lambda: with_loss(
            fo.conditionally_transform(fo.lookahead(fo.scale(-0.1), 2), while_large, forward_extra_args=True)
        ),
        couples=True,
        lr_scales_all=False,
    ),
    Row("conditionally_mask", lambda: fo.conditionally_mask(fo.adam(0.1), every_other)),
    Row(
        "conditionally_mask/lookahead",
        lambda: fo.conditionally_mask(fo.lookahead(fo.sgd(fo.linear_schedule(0.1, 0.0, 5)), 2), every_other),
        lr_scales_all=False,
    ),
    Row("masked", lambda: by_lr(fo.masked(fo.scale_by_adam(), matrices)), layout_invariant=False),
    Row(
        "masked/lookahead",
        lambda: fo.chain(fo.scale(-0.1), fo.masked(fo.lookahead(fo.scale_by_adam(), 2), matrices)),
        layout_invariant=False,
        lr_scales_all=False,
    ),
    Row("partition", lambda: fo.partition(PARTS, kinds), layout_invariant=False, couples=True, lr_scales_all=False),
    Row("partition/lookahead", lambda: fo.partition(WRITING, kinds), layout_invariant=False, lr_scales_all=False),
    Row("multi_transform", lambda: fo.multi_transform(SCHEDULED, kinds), layout_invariant=False, lr_scales_all=False),
    Row("freeze", lambda: fo.chain(fo.adamw(0.1), fo.freeze(matrices)), layout_invariant=False),
    Row("freeze/all", lambda: fo.chain(fo.sgd(0.1), fo.freeze())),
    Row(
        "selective_transform",
        lambda: fo.selective_transform(fo.adamw(0.1, weight_decay=0.1), freeze_mask=matrices),
        layout_invariant=False,
    ),
    Row(
        "selective_transform/lookahead",
        lambda: fo.selective_transform(fo.lookahead(fo.sgd(0.1, 0.9), 2), freeze_mask=matrices),
        layout_invariant=False,
    ),
    Row("reduce_on_plateau", plateau, couples=True),
]
