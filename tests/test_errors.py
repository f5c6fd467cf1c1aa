"""Errors of a step: their type, what they name, the way out, and that nothing was changed. Those of making an optimizer
are in test_errors_made.py."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import optree
import pytest
import torch
from said import step, words

import functopt as fo
from functopt import tree

NAN = float("nan")


def test_nothing_is_changed_by_a_step_that_fails(params: Any, grads: Any):
    tx = fo.adamw()
    state, bad = tx.init(params), tree.set(grads, {"head.gain": torch.ones(7)})
    inputs: Any = (params, grads, state, bad)
    before, versions = optree.tree_map(torch.clone, inputs), optree.tree_map(lambda leaf: leaf._version, inputs)
    for attempt in (
        lambda: tx.update(bad, state, params),
        lambda: tx.update(grads, (), params),
        lambda: tx.update(grads, state, params, {"rl": 0.1}),
        lambda: tx.update(grads, state, params, {"beta1": torch.ones(2)}),
        lambda: tx.update(grads, state, params, {"beta2": {"body": 0.9, "head": 0.8}}),
    ):
        with pytest.raises((ValueError, KeyError)):
            attempt()
    same = optree.tree_map(lambda a, b: torch.equal(a, b), inputs, before)
    assert all(optree.tree_leaves(same))
    assert optree.tree_map(lambda leaf: leaf._version, inputs) == versions


# Parameters


@pytest.mark.parametrize("empty", [{}, [], (), {"a": {}}, None], ids=str)
def test_no_parameters(empty: Any):
    for attempt in (lambda: fo.sgd().init(empty), lambda: fo.sgd().update(empty, ((), ()), empty)):
        with pytest.raises(ValueError, match="no leaves") as error:
            attempt()
        words(error, "chain", "at least one tensor")


@pytest.mark.parametrize(
    ("leaf", "kind"),
    [
        (torch.arange(3), "int64 tensor"),
        (torch.ones(3, dtype=torch.bool), "bool tensor"),
        (torch.ones(3, dtype=torch.complex64), "complex64 tensor"),
        (torch.eye(3).to_sparse(), "sparse tensor"),
        (1.0, "a float"),
        ("weights", "a str"),
    ],
)
def test_leaf_that_cannot_be_optimized(leaf: Any, kind: str):
    with pytest.raises(TypeError, match="floating-point") as error:
        fo.adam().init({"head": {"gain": leaf}, "body": torch.ones(2)})
    words(error, "'head.gain'", kind)


# Gradients


def test_gradient_of_another_structure_names_the_first_path(params: Any, grads: Any):
    missing = {"body": grads["body"], "head": {"gain": grads["head"]["gain"]}}
    with pytest.raises(ValueError, match="does not match params") as error:
        step(fo.sgd(), missing, params)
    words(error, "gradient", "'head.kernel'", "no counterpart")

    more = {**grads, "tail": torch.ones(2)}
    with pytest.raises(ValueError, match="does not match params") as error:
        step(fo.sgd(), more, params)
    words(error, "'tail'", "not expected")

    whole = {**grads, "head": torch.ones(2)}
    with pytest.raises(ValueError, match="does not match params") as error:
        step(fo.sgd(), whole, params)
    words(error, "'head")

    deeper = tree.set(grads, {"body": grads["body"]})
    deeper["body"] = {**deeper["body"], "bias": [torch.ones(3)]}
    with pytest.raises(ValueError, match="does not match params") as error:
        step(fo.sgd(), deeper, params)
    words(error, "'body.bias")

    with pytest.raises(ValueError, match="does not match params") as error:
        step(fo.sgd(), [torch.ones(2)], (torch.ones(2),))
    words(error, "a list, expected a tuple")

    forwards, backwards = (OrderedDict((name, torch.ones(2)) for name in names) for names in ("ab", "ba"))
    with pytest.raises(ValueError, match="does not match params") as error:
        step(fo.sgd(), backwards, forwards)
    words(error, "containers differ")


def test_gradient_that_is_none(params: Any, grads: Any):
    grads["body"] = {**grads["body"], "bias": None}
    with pytest.raises(ValueError, match="does not match params") as error:
        step(fo.sgd(), grads, params)
    words(error, "'body.bias' is None", "zeros", "StatefulOptimizer")


@pytest.mark.parametrize(
    ("leaf", "got"),
    [
        (torch.ones(4, dtype=torch.float64), "float64[4]"),
        (torch.ones(3, dtype=torch.float32), "float32[3]"),
        (torch.ones(3, dtype=torch.float64).to_sparse(), "sparse float64[3]"),
        (torch.ones(3, dtype=torch.float64, device="meta"), "on meta"),
    ],
)
def test_gradient_of_another_shape_dtype_layout_or_device(params: Any, grads: Any, leaf: Any, got: str):
    with pytest.raises(ValueError, match="expected float64") as error:
        step(fo.sgd(), tree.set(grads, {"body.bias": leaf}), params)
    words(error, "gradient", "'body.bias'", "float64[3] on cpu", got)


# Hypers


def test_unknown_hyper_offers_the_closest(params: Any, grads: Any):
    for attempt in (
        lambda: step(fo.adamw(), grads, params, {"weigt_decay": 0.1}),
        lambda: fo.adamw().with_hypers(weigt_decay=0.1),
    ):
        with pytest.raises(KeyError) as error:
            attempt()
        words(error, "'weigt_decay'", "Did you mean 'weight_decay'?", "'beta1'", "'lr'")


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("learning_rate", "lr"), ("b1", "beta1"), ("b2", "beta2"), ("wd", "weight_decay"), ("sqr_mom", "beta2")],
)
def test_names_of_other_libraries(params: Any, grads: Any, theirs: str, ours: str):
    for attempt in (
        lambda: step(fo.adamw(), grads, params, {theirs: 0.1}),
        lambda: fo.adamw().with_hypers(**{theirs: 0.1}),
    ):
        with pytest.raises(KeyError) as error:
            attempt()
        words(error, theirs, f"called '{ours}'")


def test_hyper_with_dimensions(params: Any, grads: Any):
    with pytest.raises(ValueError, match="0-d tensor") as error:
        step(fo.adamw(), grads, params, {"lr": torch.ones(3)})
    words(error, "lr", "[3]", "vmap", "tree")
    with pytest.raises(ValueError, match="0-d tensor"):
        fo.adamw(torch.ones(3))


def test_hyper_that_is_no_prefix(params: Any, grads: Any):
    with pytest.raises(ValueError, match="no prefix of params") as error:
        step(fo.adamw(), grads, params, {"lr": {"body": 0.1}})
    words(error, "lr", "'head")
    with pytest.raises(ValueError, match="no prefix of params") as error:
        step(fo.adamw({"body": 0.1, "head": 0.1, "tail": 0.1}), grads, params)
    words(error, "lr", "'tail'")


def test_hyper_that_shapes_state_keeps_its_structure(params: Any, grads: Any):
    groups = {"body": 0.9, "head": 0.8}
    tx = fo.adamw()
    with pytest.raises(ValueError, match="with_hypers") as error:
        tx.update(grads, tx.init(params), params, {"beta1": groups})
    words(error, "decay", "structure", "init")
    tx = tx.with_hypers(beta1=groups)
    tx.update(grads, tx.init(params), params)  # the way out works


def test_schedule_without_a_counter(params: Any, grads: Any):
    schedule = fo.linear_schedule(0.1, 0.0, 10)
    with pytest.raises(ValueError, match="no step counter") as error:
        step(fo.adamw(), grads, params, {"lr": schedule})
    words(error, "lr", "scheduled(", "default")
    step(fo.scheduled(fo.adamw()), grads, params, {"lr": schedule})  # both ways out work
    step(fo.adamw(schedule), grads, params)


@pytest.mark.parametrize("value", [lambda step: 0.1, "0.1", [0.1, "0.2"]], ids=["lambda", "str", "list"])
def test_hyper_of_another_type(params: Any, grads: Any, value: Any):
    for attempt in (lambda: fo.sgd(value), lambda: step(fo.sgd(), grads, params, {"lr": value})):
        with pytest.raises(TypeError, match="expected a number, 0-d tensor or schedule") as error:
            attempt()
        words(error, "lr", *(["NamedTuple", "__call__"] if callable(value) else ["str"]))


@pytest.mark.parametrize(
    ("make", "name", "value"),
    [
        (lambda: fo.sgd(-0.1), "lr", "-0.1"),
        (lambda: fo.sgd(NAN), "lr", "nan"),
        (lambda: fo.sgd(float("inf")), "lr", "inf"),
        (lambda: fo.sgd({"a": 0.1, "b": -0.1}), "lr", "-0.1"),
        (lambda: fo.adam(beta1=1.0), "beta1", "1.0"),
        (lambda: fo.adam(beta2=1.5), "beta2", "1.5"),
        (lambda: fo.adam(eps=-1e-8), "eps", "-1e-08"),
        (lambda: fo.adamw(weight_decay=-1.0), "weight_decay", "-1.0"),
        (lambda: fo.rmsprop(decay=1.0), "decay", "1.0"),
        (lambda: fo.nadam(momentum_decay=-1.0), "momentum_decay", "-1.0"),
        (lambda: fo.clip_by_global_norm(-1.0), "max_norm", "-1.0"),
        (lambda: fo.clip_by_global_norm(NAN), "max_norm", "nan"),
        (lambda: fo.clip(-1.0), "max_delta", "-1.0"),
        (lambda: fo.scale(NAN), "step_size", "nan"),
        (lambda: fo.lookahead(fo.sgd(), 0), "sync_period", "0"),
        (lambda: fo.sgd().with_hypers(lr=NAN), "lr", "nan"),
    ],
)
def test_numbers_out_of_range(make: Any, name: str, value: str):
    with pytest.raises(ValueError, match="must be in") as error:
        make()
    words(error, name, f"got {value}")


@pytest.mark.parametrize("value", [-0.1, NAN])
def test_numbers_out_of_range_at_a_step(params: Any, grads: Any, value: float):
    with pytest.raises(ValueError, match="lr must be in"):
        step(fo.adamw(), grads, params, {"lr": value})


# State


def test_state_of_another_optimizer(params: Any, grads: Any):
    pairs = [
        (fo.adam(), fo.scale_by_lr()),
        (fo.chain(fo.trace(), fo.scale_by_lr()), fo.chain(fo.ema(), fo.scale_by_lr())),
        (fo.chain(fo.trace(), fo.scale_by_lr()), fo.chain(fo.identity(), fo.scale_by_lr())),
        (fo.scale_by_adam(), fo.scale_by_nadam()),
        (fo.scale_by_lr(), fo.trace()),
        (fo.lookahead(fo.sgd()), fo.sgd()),
        (fo.scheduled(fo.sgd()), fo.sgd()),
        (fo.sgd(), fo.scheduled(fo.sgd())),
        (fo.sequence(fo.sgd(), fo.scale(-0.1)), fo.trace()),
    ]
    for tx, other in pairs:
        with pytest.raises(ValueError, match="belongs to another optimizer") as error:
            tx.update(grads, other.init(params), params)
        words(error, "expected", "got", "init")
