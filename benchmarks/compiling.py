"""How long a first compilation takes, how it grows with the number of tensors, and how long the next process needs."""

from __future__ import annotations

import os
import tempfile
import time
from typing import Any

from benchmarks import models, peers, report
from benchmarks.measure import summary, target
from benchmarks.worker import FailedError, Worker

TITLE = "Seconds until the first step is done: cold (no cache of any kind), and in a second process (warm)"

TRIVIAL = "torch.compile(x + 1)"
START_UP = {"importing torch's compiler": "compiling:imports", TRIVIAL: "compiling:trivial"}
CASES = {
    "functopt: AdamW": (peers.OURS, "adamw", 10.0),
    "functopt: clip + AdamW + EMA": (peers.OURS, "chain", 10.0),
    "functopt: LAMB": (peers.OURS, "lamb", 25.0),
    "torch compiled: AdamW": ("torch compiled", "adamw", None),
    "optax: AdamW": ("optax", "adamw", None),
}
WARM = 4.0
NO_CACHE = {"TORCHINDUCTOR_FX_GRAPH_CACHE": "0", "TORCHINDUCTOR_AUTOGRAD_CACHE": "0"}
CACHE = {"TORCHINDUCTOR_FX_GRAPH_CACHE": "1", "TORCHINDUCTOR_AUTOGRAD_CACHE": "1"}


def trivial() -> dict[str, float]:
    """Compile ``x + 1``, in the worker: what remains is torch's start-up.

    Before its first kernel torch tries which vector instructions work and precompiles a header.
    """
    import torch

    began = time.perf_counter()
    torch.compile(lambda x: x + 1)(torch.ones(16))
    return {"first": time.perf_counter() - began}


def imports() -> dict[str, float]:
    """Import torch's compiler, in the worker: part of a first step, unless something has imported it before.

    ``torch.optim`` does, so that the peer that torch compiles has it before the clock starts.
    """
    began = time.perf_counter()
    import torch._dynamo
    import torch._inductor.compile_fx  # noqa: F401

    return {"first": time.perf_counter() - began}


def run(options: Any) -> dict[str, Any]:
    """Compile every case, in processes of their own with an empty cache folder."""
    rows, too_slow = [_row(name, 1, function, {}, options) for name, function in START_UP.items()], set()
    for count in options.tensors:
        shapes = models.BY_COUNT[count]()
        for name, (contender, optimizer, _) in CASES.items():
            if contender not in options.contenders:
                continue
            arguments = {"contender": contender, "optimizer": optimizer, "shapes": shapes}
            if name in too_slow:
                row = {"name": name, "tensors": count, "skipped": "too slow with fewer already"}
            else:
                row = _row(name, count, "updates:build", arguments, options)
            if "skipped" in row:
                too_slow.add(name)
                report.say(f"  {name}, {count} tensors: skipped: {row['skipped']}")
            rows.append(row)
    return {"rows": rows, "targets": [line for row in rows for line in _targets(row)]}


def _row(name: str, tensors: int, function: str, arguments: dict[str, Any], options: Any) -> dict[str, Any]:
    """Time a case cold a few times, fill a cache, and time it warm as often."""
    row: dict[str, Any] = {"name": name, "tensors": tensors}
    repeats = range(options.compile_repeats)

    def first_step(folder: str, caches: dict[str, str]) -> float:
        os.makedirs(folder, exist_ok=True)
        # the compiled header of kernels is kept in the folder for temporary files
        with Worker({"TORCHINDUCTOR_CACHE_DIR": folder, "TMPDIR": folder, **caches}) as worker:
            return worker.call(function, options.limit, **arguments)["first"]

    try:
        with tempfile.TemporaryDirectory() as folder:
            cold = [first_step(f"{folder}/{i}", NO_CACHE) for i in repeats]
            first_step(f"{folder}/0", CACHE)
            warm = [first_step(f"{folder}/0", CACHE) for _ in repeats]
    except FailedError as error:
        return {**row, "skipped": str(error)}
    report.say(f"  {name}, {tensors} tensors: cold {min(cold):.1f} s, warm {min(warm):.1f} s at best")
    return {**row, "cold": summary(cold), "warm": summary(warm)}


def _targets(row: dict[str, Any]) -> list[dict[str, Any]]:
    limit = CASES[row["name"]][2] if row["name"] in CASES else None
    if limit is None or "skipped" in row:
        return []
    where = f"{row['name']}, {row['tensors']} tensors"
    return [
        target(f"{where}: cold, seconds", row["cold"]["median"], limit),
        target(f"{where}: warm, seconds", row["warm"]["median"], WARM),
    ]


def table(result: dict[str, Any]) -> str:
    """Return the table; its first rows are importing, and what torch takes for the least function as it is."""
    lines = [["", "tensors", "cold, s", "warm, s"]]
    for row in result["rows"]:
        skipped = f"skipped: {row['skipped']}" if "skipped" in row else ""
        cells = [skipped, ""] if skipped else [report.spread(row["cold"]), report.spread(row["warm"])]
        lines.append([row["name"], str(row["tensors"]), *cells])
    return report.grid(lines)


def chart(result: dict[str, Any], path: Any) -> None:
    """Draw cold and warm seconds over the number of tensors."""
    with report.figure(path, 1, 2) as axes:
        for ax, kind in zip(axes[0], ("cold", "warm"), strict=True):
            for name in CASES:
                rows = [row for row in result["rows"] if row["name"] == name and kind in row]
                if rows:
                    medians = [row[kind]["median"] for row in rows]
                    ax.plot([row["tensors"] for row in rows], medians, "o-", ms=3, label=name)
            start = next(row for row in result["rows"] if row["name"] == TRIVIAL)
            if kind in start:
                ax.axhline(start[kind]["median"], color="grey", ls=":", label=TRIVIAL)
            ax.set(xscale="log", yscale="log", xlabel="tensors", ylabel=f"seconds, {kind}")
            ax.legend(fontsize=6)
