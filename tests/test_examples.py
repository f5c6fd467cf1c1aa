"""The training loops of the examples, shortened, reach the accuracy that they promise."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

classic_loop: Any = import_module("classic_loop")
functional_loop: Any = import_module("functional_loop")
digits: Any = import_module("digits")


@pytest.mark.parametrize("loop", [classic_loop, functional_loop], ids=lambda loop: loop.__name__)
def test_a_loop_reaches_its_accuracy(loop, capsys):
    accuracy = loop.main(epochs=6)
    assert accuracy > 0.95
    assert f"test accuracy {accuracy:.2%}" in capsys.readouterr().out


def test_the_digits_are_split_and_standardised():
    data = digits.load()
    assert [len(split.labels) for split in data] == [1077, 360, 360]
    assert data.train.images.shape == (1077, 1, 8, 8)
    assert (data.train.images.dtype, data.train.labels.dtype) == (torch.float32, torch.int64)
    # rounding of a sum of 69 thousand numbers in float32
    torch.testing.assert_close(data.train.images.mean(), torch.tensor(0.0), rtol=0, atol=1e-6)
    torch.testing.assert_close(data.train.images.std(), torch.tensor(1.0), rtol=1e-6, atol=0)
    images = torch.cat([split.images for split in data]).flatten(1)
    again = torch.cat([split.images for split in digits.load()]).flatten(1)
    assert torch.equal(images, again)
    other = digits.load(seed=1)
    assert not torch.equal(data.test.labels, other.test.labels)


def test_batches_are_shuffled_anew_and_reproducible():
    data = digits.load()
    rounds = [torch.cat([batch.labels for batch in digits.batches(data.train, 100, 2, seed=3)]) for _ in range(2)]
    assert torch.equal(*rounds)
    assert len(rounds[0]) == 2000
    assert not torch.equal(rounds[0][:1000], rounds[0][1000:])
    assert len({tuple(batch.images.flatten().tolist()) for batch in digits.batches(data.train, 1, 1)}) == 1077
