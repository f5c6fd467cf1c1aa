"""The examples of the clients, shortened, reach the accuracy that they promise."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import pytest
from client import load

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

EXAMPLES = {
    "lightning_client": ("lightning", "lightning.pytorch"),
    "accelerate_client": ("accelerate", "accelerate"),
    "huggingface_trainer": ("transformers", "transformers"),
    "fastai_learner": ("fastai", "fastai.learner", "fastai.callback.progress"),
}


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:numpy.core is deprecated:DeprecationWarning")
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_reaches_its_accuracy(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    load(*EXAMPLES[name])
    accuracy = import_module(name).main(epochs=5)
    assert accuracy > 0.9
    assert f"test accuracy {accuracy:.2%}" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
