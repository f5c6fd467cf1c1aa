"""An optimizer is a value: it prints as its call, pickles, compares, hashes and cannot be changed."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from registry import FAMILIES, Row, moved, number_hypers, rows, with_loss

import functopt as fo
from functopt import Transform, schedules


def read(text: str) -> Any:
    # schedules print as their classes, which are not in the flat namespace
    made_here = {name: thing for family in FAMILIES for name, thing in vars(family).items() if callable(thing)}
    named = {"inf": math.inf, "torch": torch, "with_loss": with_loss}
    return eval(text, {**made_here, **vars(schedules), **vars(fo), **named})


@rows("value")
def test_repr_is_the_call_that_made_it(row: Row):
    tx = row.make()
    assert read(repr(tx)) == tx


@rows("value")
def test_equal_arguments_make_equal_values(row: Row):
    tx, again = row.make(), row.make()
    assert tx is not again or row.id == "chain/empty"
    assert tx == again
    assert hash(tx) == hash(again)
    assert {tx: 1}[again] == 1


@rows("value")
def test_pickle_round_trip(row: Row):
    tx = row.make()
    read = pickle.loads(pickle.dumps(tx))
    assert read == tx
    assert hash(read) == hash(tx)
    assert repr(read) == repr(tx)


@rows("value")
def test_copies_are_the_same_object(row: Row):
    tx = row.make()
    assert copy.copy(tx) is tx
    assert copy.deepcopy(tx) is tx


@rows("value")
def test_other_hypers_make_another_value(row: Row):
    tx = row.make()
    for name, value in number_hypers(tx).items():
        if math.isfinite(value):
            other = tx.with_hypers(**{name: moved(name, value, 2)})
            assert other != tx
            assert other.hypers[name] == moved(name, value, 2)
            assert other.with_hypers(**{name: tx.hypers[name]}) == tx
            assert tx.hypers[name] == value, "with_hypers changed its receiver"


@rows("value")
def test_with_hypers_keeps_everything_else(row: Row):
    tx = row.make()
    assert tx.with_hypers() is tx
    assert tx.with_hypers(**tx.hypers) == tx
    assert tx.with_hypers(**tx.hypers).layout_invariant == tx.layout_invariant


@rows("value")
def test_frozen(row: Row):
    tx = row.make()
    with pytest.raises(AttributeError, match="frozen"):
        tx.layout_invariant = False  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(AttributeError, match="frozen"):
        tx.anything = 1  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(AttributeError, match="frozen"):
        del tx.layout_invariant  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(TypeError):
        tx.hypers["lr"] = 1.0  # pyright: ignore[reportIndexIssue]


def test_arguments_are_copied():
    lr, mask = {"body": 0.1, "head": 0.2}, {"body": True, "head": False}
    tx = fo.adamw(lr, mask=mask)
    before = repr(tx)
    lr["body"], mask["body"] = 9.0, False
    assert repr(tx) == before
    assert tx.hypers["lr"] == {"body": 0.1, "head": 0.2}


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (fo.adam(0.1), fo.adamw(0.1)),
        (fo.adam(0.1), fo.adam(0.1, nesterov=True)),
        (fo.adamw(mask={"a": True}), fo.adamw(mask={"a": False})),
        (fo.adamw(mask={"a": True}), fo.adamw()),
        (fo.sgd(0.1), fo.sgd({"a": 0.1})),
        (fo.sgd(torch.tensor(0.1)), fo.sgd(torch.tensor(0.2))),
        (fo.sgd(torch.tensor(0.1)), fo.sgd(torch.tensor(0.1, dtype=torch.float64))),
        (fo.sgd(fo.linear_schedule(0.1, 0.0, 9)), fo.sgd(fo.polynomial_schedule(0.1, 0.0, 1.0, 9))),
        (fo.chain(fo.trace(), fo.scale_by_lr()), fo.chain(fo.scale_by_lr(), fo.trace())),
        (fo.chain(fo.trace()), fo.trace()),
        (fo.rename(fo.trace(), momentum="a"), fo.rename(fo.trace(), momentum="b")),
        (fo.lookahead(fo.sgd()), fo.lookahead(fo.sgd(), sync_period=5)),
        (fo.scheduled(fo.sgd()), fo.sgd()),
    ],
    ids=str,
)
def test_different(a: Transform, b: Transform):
    assert a != b
    assert b != a
    assert a != "a"


@pytest.mark.parametrize(
    "make",
    [
        lambda: fo.sgd(torch.tensor(0.1)),
        lambda: fo.sgd({"body": torch.tensor(0.1), "head": 0.2}),
        lambda: fo.sgd([0.1, (0.2, 0.3)]),
        lambda: fo.adamw(mask={"body": True, "head": [False, True]}),
        lambda: fo.chain(fo.trace(), fo.scale_by_lr(fo.join([0.5, 0.5], [fo.linear_schedule(0, 1)] * 2))),
        lambda: fo.lookahead(fo.chain(fo.clip(1.0), fo.sgd(fo.cosine_decay_schedule(0.1, 10)))),
    ],
)
def test_values_of_every_kind_compare_hash_and_pickle(make: Any):
    assert make() == make()
    assert hash(make()) == hash(make())
    assert pickle.loads(pickle.dumps(make())) == make()


@pytest.mark.parametrize(
    "tx",
    [fo.sgd({"body": 0.1, "head": 0.2}), fo.adamw(mask={"body": True, "head": [False, True]}), fo.sgd([0.1, (0.2,)])],
    ids=str,
)
def test_repr_with_trees(tx: Transform):
    assert read(repr(tx)) == tx
