"""The rows of links that clip, normalise, add noise, hold back and look, and of recipes made of them."""

from __future__ import annotations

from typing import Any

import torch

import functopt as fo
from functopt import Transform, tree
from functopt.combine import combinator
from functopt.tree import norm
from registry.problem import Row, Tree, by_lr


@combinator
def with_examples(tx: Transform) -> Transform:
    """Give an optimizer the gradients of three examples, whose mean is the one that is given."""

    def examples(grads: Tree) -> Tree:
        return tree.map(lambda g: torch.stack([0.5 * g, g, 1.5 * g]), grads)

    def transform(updates: Tree, state: Tree, params: Tree, hypers: Any, **extras: Any) -> tuple[Tree, Tree]:
        return tx._transform(examples(updates), state, params, hypers, **extras)

    return Transform(tx._init, transform, hypers=tx.hypers)


def by_block(link: Transform) -> Transform:
    """A link whose updates do not depend on the layout, only what it keeps, before one whose updates do."""
    return by_lr(fo.chain(link, fo.clip_by_block_rms(0.9)))


def shrink(u: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    return u / (1 + p.square())


def centred(u: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    return u - u.mean() * p


def by_size(updates: Tree, params: Tree) -> Tree:
    size = 1 + tree.norm(updates)
    return tree.map(lambda u, p: u * p / size, updates, params)


def large(updates: Tree) -> torch.Tensor:
    return tree.norm(updates) > 5.5


def measures() -> Any:
    return {
        "often": fo.measure_with_ema(0.8, measure=large),
        "norm": norm,
        "mean": fo.rename(fo.ema(0.9), decay="slow"),
    }


ROWS: list[Row] = [
    Row("adaptive_grad_clip", lambda: by_lr(fo.adaptive_grad_clip(0.5)), layout_invariant=False),
    Row("adaptive_grad_clip/optax", lambda: by_lr(fo.adaptive_grad_clip(0.5, form="optax")), layout_invariant=False),
    Row("scale_by_param_block_norm", lambda: by_lr(fo.scale_by_param_block_norm()), layout_invariant=False),
    Row("centralize", lambda: by_lr(fo.centralize()), layout_invariant=False),
    Row("normalize_by_update_norm", lambda: by_lr(fo.normalize_by_update_norm(0.9, 0.1)), couples=True),
    Row("normalize", lambda: by_lr(fo.normalize()), couples=True),
    Row("add_noise", lambda: by_lr(fo.add_noise(0.1, 0.55, 3)), layout_invariant=False, couples=True),
    Row("noisy_sgd", lambda: fo.noisy_sgd(0.1, 0.01), layout_invariant=False, couples=True),
    Row(
        "differentially_private_aggregate",
        lambda: with_examples(by_lr(fo.differentially_private_aggregate(5.0, 0.1))),
        layout_invariant=False,
        couples=True,
    ),
    Row(
        "dpsgd",
        lambda: with_examples(fo.dpsgd(0.1, 5.0, 0.1, momentum=0.5, nesterov=True)),
        layout_invariant=False,
        couples=True,
    ),
    Row("apply_every", lambda: by_lr(fo.apply_every(3))),
    Row("zero_nans", lambda: by_block(fo.zero_nans()), layout_invariant=False),
    Row(
        "keep_params_nonnegative",
        lambda: fo.chain(fo.scale(-0.1), fo.keep_params_nonnegative()),
        lr_scales_all=False,
    ),
    Row("snapshot", lambda: by_block(fo.snapshot("norm", norm)), layout_invariant=False),
    Row("monitor", lambda: by_block(fo.monitor(measures())), layout_invariant=False, couples=True),
    Row(
        "measure_with_ema",
        lambda: by_block(fo.monitor({"norm": fo.measure_with_ema(0.8, measure=norm, debias=False)})),
        layout_invariant=False,
        couples=True,
    ),
    Row("scale_by_schedule", lambda: fo.scale_by_schedule(fo.linear_schedule(-0.1, -0.02, 6)), lr_scales_all=False),
    Row("stateless", lambda: by_lr(fo.stateless(by_size, scope="tree")), couples=True),
    Row("stateless_with_tree_map", lambda: by_lr(fo.stateless_with_tree_map(centred)), layout_invariant=False),
    Row("stateless_with_tree_map/element", lambda: by_lr(fo.stateless_with_tree_map(shrink, scope="element"))),
    Row("named_chain", lambda: fo.named_chain(("second", fo.clip(0.5)), ("first", fo.adam(0.1)))),
    Row(
        "named_chain/writes",
        lambda: fo.named_chain(("clip", fo.clip_by_global_norm(0.5)), ("slow", fo.lookahead(fo.lamb(0.1), 2))),
        layout_invariant=False,
        couples=True,
    ),
]
