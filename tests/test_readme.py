"""The README: its code runs as written, and its ten-line optimizer can do what it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import functopt as fo
from functopt import training

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture(scope="module")
def namespace(tmp_path_factory) -> dict:
    """Run all blocks, in order and in one namespace, in an empty folder."""
    names: dict = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("readme"))
        torch.manual_seed(0)
        for i, block in enumerate(BLOCKS):
            exec(compile(block, f"README.md, block {i + 1}", "exec"), names)
        assert {path.name for path in Path.cwd().iterdir()} == {"lr.png", "sweep.csv", "optimizer.pt", "loss.png"}
    return names


def test_the_code_runs_as_written(namespace):
    assert len(BLOCKS) >= 6
    assert torch.isfinite(namespace["best"]["weight"]).all()
    assert len(namespace["result"]) == 64


def test_the_ten_line_optimizer_has_ten_lines():
    (block,) = (block for block in BLOCKS if "scale_by_belief" in block and "@fo.link" in block)
    body = block.split("\n\n\n")[0].strip().splitlines()
    assert len([line for line in body if line.strip()]) <= 10


def test_the_ten_line_optimizer_is_swept(namespace):
    loss_fn, params, batch = namespace["loss_fn"], namespace["params"], (namespace["x"], namespace["y"])
    tx, lrs = namespace["adabelief"], [1e-3, 1e-2, 1e-1]
    result = fo.sweep(loss_fn, params, tx, {"lr": lrs, "beta1": [0.8, 0.9, 0.95]}, [batch] * 5)
    for i in range(3):
        alone, state = params, tx.init(params)
        for _ in range(5):
            grads = torch.func.grad(loss_fn)(alone, batch)
            alone, state = tx.update(grads, state, alone, result.config(i))
        for name, leaf in result.params(i).items():
            torch.testing.assert_close(leaf, alone[name], rtol=1e-5, atol=1e-5)  # float32 rounding


def test_the_ten_line_optimizer_is_compiled_once(namespace):
    from torch._dynamo.testing import CompileCounter

    tx, params = namespace["adabelief"], namespace["params"]
    counter = CompileCounter()
    step = torch.compile(lambda g, s, p, h: tx.update(g, s, p, h), backend=counter, fullgraph=True)
    state = tx.init(params)
    for lr in (0.1, 0.2, 0.3):
        params, state = step(params, state, params, {"lr": torch.tensor(lr)})
    assert counter.frame_count == 1


def test_the_ten_line_optimizer_is_differentiated(namespace):
    tx, loss_fn, batch = namespace["adabelief"], namespace["loss_fn"], (namespace["x"], namespace["y"])

    def after(hypers):
        params = namespace["params"]
        state = tx.init(params)
        for _ in range(3):
            params, state = tx.update(torch.func.grad(loss_fn)(params, batch), state, params, hypers)
        return loss_fn(params, batch)

    hypers = {name: torch.tensor(float(value)) for name, value in tx.hypers.items()}
    grads = torch.func.grad(after)(hypers)
    assert all(torch.isfinite(g) for g in grads.values())
    # against a finite difference, in lr, whose effect is smooth; float32 allows two or three digits
    up, down = (after({**hypers, "lr": hypers["lr"] + d}) for d in (1e-3, -1e-3))
    torch.testing.assert_close(grads["lr"], (up - down) / 2e-3, rtol=2e-2, atol=1e-3)


def test_pictures_and_files_that_the_readme_names_exist():
    for path in re.findall(r"\]\((?!http)([^)]+)\)", TEXT) + re.findall(r"`((?:examples|benchmarks)/[\w/.]+)`", TEXT):
        assert (ROOT / path).is_file(), path


def test_every_public_name_is_documented():
    for module in (fo, training):
        for name in dir(module):
            if not name.startswith("_"):
                assert getattr(module, name).__doc__, name


def test_the_pieces_of_the_table_exist():
    table = TEXT.split("## Train")[1].split("## Speed")[0]
    names = [
        name
        for line in table.splitlines()
        if line.startswith("| `")
        for name in re.findall(r"`(\w+)`", line.split("|")[1])
    ]
    assert len(names) > 15
    assert {*names} <= {*training.__all__}


def test_functions_in_the_table_of_names_exist():
    for name in re.findall(r"`(\w+)\(", TEXT.split("## Names")[1].split("## What has not")[0]):
        assert hasattr(fo, name) or hasattr(torch.optim, name) or name == "update" or hasattr(fo.tree, name), name
