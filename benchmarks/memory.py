"""The most memory that one step takes, as a multiple of parameters, gradients and state.

Measured is the peak of the process's resident memory (``VmHWM``, set back through ``/proc/self/clear_refs`` before the
step) over what was resident before it: what the step needed beside what it was given, whoever allocated it. malloc is
told to hand back at once what is freed, so that a step does not find room that an earlier one has left.
"""

from __future__ import annotations

import ctypes
import re
from pathlib import Path
from typing import Any

from benchmarks import models, peers, report
from benchmarks.measure import summary, target
from benchmarks.worker import FailedError, NotOfferedError, Worker

TITLE = "Peak memory of one step, as a multiple of parameters + gradients + state"

COPIES = {"adamw": 4, "chain": 5}  # parameters, gradients, two averages, and that of the parameters
LIMITS = {peers.OURS: 1.02, "functopt stateful eager": 1.25}
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def measure(contender: str, optimizer: str, shapes: models.Shapes, repeats: int) -> list[float]:
    """Return the multiple of each of a few steps; in the worker."""
    built = peers.build(contender, optimizer, shapes)
    given = 4 * models.size(shapes) * COPIES[optimizer]
    multiples = []
    for i in range(3 + repeats):
        built.prepare()
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = _resident("VmRSS")
        built.step()
        if i >= 3:
            multiples.append(1 + (_resident("VmHWM") - before) / given)
    return multiples


def _resident(which: str) -> int:
    found = re.search(rf"{which}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


def run(options: Any) -> dict[str, Any]:
    """Measure every contender in a process of its own."""
    model = "tiny" if options.quick else "resnet18"
    shapes, rows, lines = models.MODELS[model](), [], []
    for optimizer in COPIES:
        for contender in options.contenders:
            row: dict[str, Any] = {"model": model, "optimizer": optimizer, "name": contender}
            arguments = {"contender": contender, "optimizer": optimizer, "shapes": shapes, "repeats": options.repeats}
            with Worker(MALLOC) as worker:
                try:
                    row["multiple"] = summary(worker.call("memory:measure", options.limit, **arguments))
                    report.say(f"  {peers.OPTIMIZERS[optimizer]}: {contender} {report.spread(row['multiple'])}")
                except (FailedError, NotOfferedError) as error:
                    row["skipped"] = str(error)
                    report.say(f"  {peers.OPTIMIZERS[optimizer]}: {contender} skipped: {error}")
            if contender in LIMITS and "multiple" in row:
                where = f"{contender}: peak memory, {peers.OPTIMIZERS[optimizer]}, {models.TITLES[model]}"
                lines.append(target(where, row["multiple"]["median"], LIMITS[contender]))
            rows.append(row)
    return {"rows": rows, "targets": lines}


def table(result: dict[str, Any]) -> str:
    """Return the table."""
    lines = [["", *(peers.OPTIMIZERS[optimizer] for optimizer in COPIES)]]
    for name in dict.fromkeys(row["name"] for row in result["rows"]):
        cells = [report.spread(row["multiple"]) if "multiple" in row else "skipped" for row in result["rows"]
                 if row["name"] == name]  # fmt: skip
        lines.append([name, *cells])
    return report.grid(lines)


def chart(result: dict[str, Any], path: Any) -> None:
    """Draw the multiples."""
    with report.figure(path, 1, len(COPIES), width=4.5, height=3) as axes:
        for ax, optimizer in zip(axes[0], COPIES, strict=True):
            rows = [row for row in result["rows"] if row["optimizer"] == optimizer and "multiple" in row]
            report.bars(ax, {row["name"]: row["multiple"]["median"] for row in rows})
            ax.set_title(f"{peers.OPTIMIZERS[optimizer]}", fontsize=8)
            ax.set_xlabel("peak over parameters + gradients + state", fontsize=7)
