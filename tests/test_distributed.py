"""Several processes on torch.distributed, started by torchrun: what they compute is what one process computes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from registry import BY_ID, FIRST, RECIPES, ROWS

import functopt as fo

SCRIPTS = Path(__file__).parent / "distributed"
EXAMPLES = Path(__file__).parents[1] / "examples"
TOLERANCE = 1e-12  # float64, parameters of size 1


# How gloo of torch 2.14 may end a process: one of its threads still holds a tensor when the interpreter is gone
# (https://github.com/pytorch/pytorch/issues/190489, pull request 179291); and once a collective ended in a segmentation
# fault. Nothing here is written in C: a process that crashes is started once more, with its stack printed, and one that
# fails is not.
CRASHED = re.compile(r"exitcode *: -(6|11) ")


def torchrun(processes: int, script: Path, *args: Any, again: bool = True) -> str:
    """Run a script in several processes and return what they print; fail with it if one of them fails."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    run = subprocess.Popen(
        [*command, str(script), *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"},
        start_new_session=True,
    )
    try:
        out, _ = run.communicate(timeout=900)
    except subprocess.TimeoutExpired:
        os.killpg(run.pid, signal.SIGTERM)
        raise
    if run.returncode and CRASHED.search(out) and again:
        print(f"{script.name} on {processes} processes crashed and is started again:\n{out[-20000:]}")
        return torchrun(processes, script, *args, again=False)
    if run.returncode:
        pytest.fail(f"{script.name} on {processes} processes:\n{out[-20000:]}")
    return out


def found(processes: int, script: str, folder: Path, *args: Any) -> dict[str, Any]:
    """Return what a script reports: for each case by how much it deviates from one process."""
    torchrun(processes, SCRIPTS / script, folder / "found.json", *args)
    return json.loads((folder / "found.json").read_text())


def too_far(found: dict[str, float]) -> dict[str, float]:
    return {case: value for case, value in found.items() if not value <= TOLERANCE}


@pytest.mark.parametrize("processes", [2, 4])
def test_ddp(processes: int, tmp_path: Path):
    cases = found(processes, "ddp.py", tmp_path)
    assert too_far(cases) == {}
    assert len(cases) == (13 if processes == 2 else 10)


@pytest.mark.parametrize("processes", [2, 4])
def test_fsdp2(processes: int, tmp_path: Path):
    cases = found(processes, "fsdp2.py", tmp_path)
    refused = cases.pop("compiled")
    assert refused.startswith("TypeError: StatefulOptimizer: a compiled step does not take sharded parameters, and")
    impossible = "NotImplementedError: StatefulOptimizer: centered does what cannot be done with sharded parameters"
    assert cases.pop("impossible").startswith(impossible)
    # elementwise ones work on their own; a global norm is one number; LAMB has two norms of each of the 8 parameters
    assert cases.pop("collectives") == {"adamw": 0, "lookahead": 0, "clipped adamw": 1, "lamb": 16}
    assert too_far(cases) == {}
    assert len(cases) == (25 if processes == 2 else 15)


# What works entry by entry knows nothing of other processes.
FEW = [id for id in FIRST if id in RECIPES or BY_ID[id].make().links_beyond("element")]
OTHERS = [row.id for row in ROWS if row.id not in FEW]


@pytest.mark.parametrize("ids", [FEW, pytest.param(OTHERS, marks=pytest.mark.exhaustive)], ids=["few", "others"])
def test_the_catalog_on_sharded_parameters(ids: list[str], tmp_path: Path):
    cases = found(4, "catalog.py", tmp_path, json.dumps(ids))
    assert too_far(cases) == {}
    assert [*cases] == [id for id in ids if "sharded" not in BY_ID[id].exceptions]


def test_checkpoints_go_on_with_other_numbers_of_processes(tmp_path: Path):
    saved = found(2, "checkpoints.py", tmp_path, tmp_path, "save")
    assert too_far(saved) == {}
    assert len(saved) == 5 * 5 - 2
    for processes in (4, 1):
        loaded = found(processes, "checkpoints.py", tmp_path, tmp_path, "load")
        assert too_far(loaded) == {}
        assert len(loaded) == 5 * 2 * 3


@pytest.mark.parametrize("example", ["ddp.py", "fsdp2.py"])
def test_examples(example: str):
    out = torchrun(2, EXAMPLES / example, "--epochs", 3)
    # not by lines, as those of several processes may run into one another
    losses = [float(loss) for loss in re.findall(r"epoch \d+: loss (\d+\.\d{4})", out)]
    assert len(losses) == 3
    assert losses[-1] < 0.5 * losses[0]


def test_schedules_come_back_from_the_numbers_in_them():
    """Which is what full state dicts of torch.distributed.checkpoint leave of them, and of what is joined of them."""

    def numbers(value: Any) -> Any:
        return [numbers(part) for part in value] if isinstance(value, (tuple, list)) else value

    parts = [fo.linear_schedule(0.0, 0.1, 3), fo.cosine_decay_schedule(0.1, 9)]
    schedule = fo.join_schedules(parts, [3])
    params = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    groups = [{"params": params[:1]}, {"params": params[1:], "lr": 0.5}]
    optimizer = fo.StatefulOptimizer(groups, fo.adamw(schedule))
    saved = optimizer.state_dict()
    for group in saved["param_groups"]:
        group["lr"] = numbers(group["lr"])
    assert saved["param_groups"][0]["lr"] != schedule
    optimizer.load_state_dict(saved)
    assert [group["lr"] for group in optimizer.param_groups] == [schedule, 0.5]
    assert type(optimizer.param_groups[0]["lr"]) is type(schedule)


def test_a_state_without_what_is_common_is_refused():
    params = [torch.nn.Parameter(torch.ones(2))]
    optimizer = fo.StatefulOptimizer(params, fo.lookahead(fo.adam()))
    saved = optimizer.state_dict()
    del saved["state"][0]["shared.count"]
    with pytest.raises(ValueError, match="the optimizer needs a 'count' of shape"):
        optimizer.load_state_dict(saved)
