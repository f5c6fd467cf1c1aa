"""Errors of making an optimizer: chains, options, masks, links, trees and schedules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from said import step, words

import functopt as fo
from functopt import link, tree

# Chains


def test_conflicting_defaults_point_to_rename():
    with pytest.raises(ValueError, match="different defaults for 'momentum'") as error:
        fo.chain(fo.trace(0.9), fo.scale_momentum_by_rms(0.8))
    words(error, "trace(", "scale_momentum_by_rms(", "0.9", "0.8", "rename(")
    tx = fo.chain(fo.trace(0.9), fo.rename(fo.scale_momentum_by_rms(0.8), momentum="rms_momentum"))
    assert dict(tx.hypers)["rms_momentum"] == 0.8


def test_nothing_stands_after_a_transform_that_writes():
    for writer in (fo.lookahead(fo.sgd()), fo.sequence(fo.sgd()), fo.ranger(), fo.chain(fo.lookahead(fo.sgd()))):
        with pytest.raises(ValueError, match="nothing can stand after it") as error:
            fo.chain(writer, fo.clip(1.0))
        words(error, "put clip before it")


def test_a_transform_that_writes_has_no_updates(params: Any, grads: Any):
    for tx in (fo.lookahead(fo.sgd()), fo.sequence(fo.sgd()), fo.lamb(form="fastai")):
        with pytest.raises(TypeError, match="writes the parameters") as error:
            tx.transform(grads, tx.init(params), params)
        words(error, "update")


def test_not_a_transform():
    for combine in (fo.chain, fo.sequence, fo.scheduled):
        with pytest.raises(TypeError, match="expected a Transform") as error:
            combine(fo.adam)  # pyright: ignore[reportArgumentType]
        words(error, "call it")
    with pytest.raises(TypeError, match="expected a Transform"):
        fo.lookahead(fo.adam)  # pyright: ignore[reportArgumentType]


def test_rename_of_what_is_not_there():
    with pytest.raises(KeyError, match="lr") as error:
        fo.rename(fo.trace(), lr="step")
    words(error, "momentum")
    with pytest.raises(ValueError, match="one name"):
        fo.rename(fo.trace(), momentum="dampening")


def test_lookahead_over_lookahead():
    with pytest.raises(ValueError, match="sync_period") as error:
        fo.lookahead(fo.lookahead(fo.sgd()))
    words(error, "rename")


@pytest.mark.parametrize(
    ("make", "wanted"),
    [
        (lambda: fo.nadam(form="keras"), ("form", "'torch'", "'keras'")),
        (lambda: fo.lamb(form="apex"), ("form", "'paper'", "'apex'")),
        (lambda: fo.lamb(decoupled=False), ("decoupled", "fastai")),
        (lambda: fo.rmsprop(momentum=0.9, momentum_of="grad"), ("momentum_of", "'gradient'", "'grad'")),
        (lambda: fo.sgd(nesterov=True), ("nesterov", "momentum")),
        (lambda: fo.sgd(momentum=0.9, dampening=0.1, nesterov=True), ("nesterov", "dampening")),
        (lambda: fo.scale_by_adam(nesterov="yes"), ("nesterov", "'same_step'", "'yes'")),
        (lambda: fo.scale_by_adam(debias="never"), ("debias", "'power'", "'never'")),
        (lambda: fo.scale_by_adam(damped=False, debias="power"), ("damped",)),
        (lambda: fo.scale_by_trust_ratio(norm="l1"), ("norm", "'rms'", "'l1'")),
    ],
)
def test_options_with_another_value(make: Any, wanted: tuple[str, ...]):
    with pytest.raises(ValueError, match=":") as error:
        make()
    words(error, *wanted)


def test_masks(params: Any, grads: Any):
    with pytest.raises(TypeError, match="True") as error:
        step(fo.adamw(mask={"body": {"weight": 1.0, "bias": False}, "head": True}), grads, params)
    words(error, "mask", "'body.weight'", "1.0")
    with pytest.raises(ValueError, match="no prefix") as error:
        step(fo.adamw(mask={"body": True}), grads, params)
    words(error, "mask", "'head")


# Links


@link
def polyak(lr=1.0):
    def transform(updates, state, params, lr, value, scale=1.0):
        return tree.map(lambda u, lr: -lr * scale * value * u, updates, lr), state

    return transform


def test_missing_extra(params: Any, grads: Any):
    tx = fo.chain(fo.clip(1.0), polyak())
    with pytest.raises(TypeError, match="polyak needs the extra 'value'") as error:
        step(tx, grads, params)
    words(error, "update(..., value=...)")
    step(tx, grads, params, value=torch.tensor(1.0), something_else=3)  # other links' extras are not its business


def test_link_that_does_not_name_a_hyper():
    @link
    def forgets(lr=0.1, decay=0.9):
        def transform(updates, state, params, lr):
            return updates, state

        return transform

    with pytest.raises(TypeError, match="must name the hyper 'decay'") as error:
        forgets()
    words(error, "forgets", "constant")


def test_link_whose_transform_names_structure():
    @link
    def confused(lr=0.1, *, nesterov=False):
        def transform(updates, state, params, lr, nesterov):
            return updates, state

        return transform

    with pytest.raises(TypeError, match="'nesterov' is structure") as error:
        confused()
    words(error, "confused", "keyword-only")


def test_link_with_open_arguments():
    with pytest.raises(TypeError, match="name every hyper"):

        @link
        def swallows(lr=0.1, **others):
            return lambda updates, state, params, lr: (updates, state)


# Trees


def test_tree_get_and_set(params: Any):
    with pytest.raises(KeyError, match="no entry named 'weights'") as error:
        tree.get(params, "weights")
    words(error, "'weight'")
    state = fo.adam().init(params)
    with pytest.raises(KeyError, match="names 2 entries") as error:
        tree.get(state, "total")
    words(error, "mu.total")
    with pytest.raises(ValueError, match="another structure"):
        tree.set(params, body={"weight": torch.ones(1)})


def test_tree_stack_and_ravel(params: Any):
    with pytest.raises(ValueError, match="no trees"):
        tree.stack([])
    with pytest.raises(ValueError, match="tree 1") as error:
        tree.stack([params, tree.set(params, {"head.gain": torch.ones(2, dtype=torch.float64)})])
    words(error, "'head.gain'")
    with pytest.raises(ValueError, match="no leaves"):
        tree.ravel({})
    with pytest.raises(ValueError, match="does not fit") as error:
        tree.map(lambda p, x: p, params, {"body": 1.0})
    words(error, "'head")


# Schedules


@pytest.mark.parametrize(
    "make",
    [
        lambda: fo.linear_schedule(0.1, 0.0, 0),
        lambda: fo.cosine_decay_schedule(0.1, -5),
        lambda: fo.exponential_decay(0.1, 10, 0.0),
        lambda: fo.join([0.5, 0.6], [fo.constant_schedule(1.0)] * 2),
        lambda: fo.join([0.5, 0.5], [fo.constant_schedule(1.0)]),
        lambda: fo.join_schedules([fo.constant_schedule(1.0)] * 2, []),
        lambda: fo.join_schedules([fo.constant_schedule(1.0)] * 3, [5, 2]),
        lambda: fo.warmup_cosine_decay_schedule(0.0, 1.0, 10, 10),
    ],
)
def test_schedules_that_cannot_be(make: Any):
    with pytest.raises(ValueError, match=r"schedule|join|decay"):
        make()


def test_parts_of_a_join_are_schedules():
    with pytest.raises(TypeError, match="part 1 is a float, expected a schedule"):
        fo.join_schedules([fo.constant_schedule(1.0), 0.5], [5])
