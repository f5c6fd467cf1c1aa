"""How long one update takes, of each optimizer on the tensors of each model."""

from __future__ import annotations

import time
from typing import Any

from benchmarks import models, peers, report
from benchmarks.measure import in_turn, ratios, summary, target
from benchmarks.worker import FailedError, NotOfferedError, Worker

TITLE = "One update: time of functopt compiled, and its ratio to each other contender (below 1: functopt is faster)"

MEMORY = 12 * 2**30  # bytes that contenders may take together
COPIES = 14  # arrays as large as the parameters that one takes at most: 7.4 GB were seen for those of GPT-2
LONG = 0.05  # seconds of a step beside which waking the threads is nothing
FUSED = {"adamw": {"": 1.05}, "chain": {"resnet18": 0.65, "resnet50": 0.8, "gpt2": 0.8}}


# In the worker

_contender: peers.Contender


def build(contender: str, optimizer: str, shapes: models.Shapes) -> dict[str, float]:
    """Make a contender, take its first step, which compiles, and a second one; return how long each took."""
    global _contender
    _contender = peers.build(contender, optimizer, shapes)
    return {"first": _timed_step(), "second": _timed_step()}


def repetition() -> float:
    """Return the seconds of one step; of a short one, the mean of a few after one that wakes the threads."""
    first = _timed_step()
    if first > LONG:
        return first
    count = max(1, min(20, round(0.01 / first)))
    return sum(_timed_step() for _ in range(count)) / count


def drop() -> None:
    """Free the contender."""
    global _contender
    del _contender


def _timed_step() -> float:
    _contender.prepare()
    began = time.perf_counter()
    _contender.step()
    return time.perf_counter() - began


# In the parent


class ContenderError(FailedError):
    """A contender failed, by name."""

    def __init__(self, name: str, message: str) -> None:
        self.name = name
        super().__init__(message)


class Workers:
    """A process for each contender, started anew when it was given up, and what has been too slow to compile."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._workers: dict[str, Worker] = {}
        self._too_slow: dict[tuple[str, str], int] = {}  # the fewest tensors for which it was

    def build(self, name: str, optimizer: str, shapes: models.Shapes) -> None:
        """Make a contender ready.

        Raises:
            NotOfferedError, FailedError: as :meth:`Worker.call`.
        """
        fewest = self._too_slow.get((name, optimizer), len(shapes) + 1)
        if fewest <= len(shapes):
            raise FailedError(f"more than {self.limit:.0f} s for {fewest} tensors already")
        if name not in self._workers or not self._workers[name].alive:
            self._workers[name] = Worker()
        try:
            self.call(name, "build", contender=name, optimizer=optimizer, shapes=shapes)
        except FailedError as error:
            if str(error).startswith("more than"):
                self._too_slow[name, optimizer] = len(shapes)
            raise

    def call(self, name: str, function: str, **arguments: Any) -> Any:
        try:
            return self._workers[name].call(f"updates:{function}", self.limit, **arguments)
        except FailedError as error:
            raise ContenderError(name, str(error)) from None

    def drop(self, name: str, *, whole: bool) -> None:
        """Free a contender's memory; with ``whole`` end its process, as not every library gives all of it back."""
        if whole or not self._workers[name].alive:
            self._workers.pop(name).close()
        else:
            self.call(name, "drop")

    def close(self) -> None:
        for worker in self._workers.values():
            worker.close()


def run(options: Any) -> dict[str, Any]:
    """Measure every chosen model, optimizer and contender."""
    workers = Workers(options.limit)
    rows = []
    try:
        for model in sorted(options.models, key=lambda model: len(models.MODELS[model]())):
            for optimizer in options.optimizers:
                rows.append(_row(model, optimizer, options, workers))
                report.say(_line(rows[-1]))
    finally:
        workers.close()
    return {"rows": rows, "targets": [line for row in rows for line in _targets(row)]}


def _row(model: str, optimizer: str, options: Any, workers: Workers) -> dict[str, Any]:
    shapes = models.MODELS[model]()
    row: dict[str, Any] = {
        "model": model, "optimizer": optimizer, "tensors": len(shapes), "parameters": models.size(shapes),
        "seconds": {}, "ratios": {}, "skipped": {},
    }  # fmt: skip

    def skip(name: str, error: Exception) -> None:
        row["skipped"][name] = str(error)
        report.say(f"  {models.TITLES[model]}, {peers.OPTIMIZERS[optimizer]}: {name} skipped: {error}")

    def ready(name: str) -> bool:
        try:
            workers.build(name, optimizer, shapes)
        except NotOfferedError:
            return False
        except FailedError as error:
            skip(name, error)
            return False
        return True

    if not ready(peers.OURS):
        return row
    room = max(1, MEMORY // (4 * row["parameters"] * COPIES) - 1)
    tight = room < len(options.contenders)
    waiting = [name for name in options.contenders if name != peers.OURS]
    while waiting and peers.OURS not in row["skipped"]:  # as many at once as fit, ours beside them every time
        group = []
        while waiting and len(group) < room:
            group += [name] if ready(name := waiting.pop(0)) else []
        repetitions = {name: lambda name=name: workers.call(name, "repetition") for name in [peers.OURS, *group]}
        try:
            figures = in_turn(repetitions, options.repeats)
        except ContenderError as error:  # the others begin anew
            skip(error.name, error)
            figures, waiting = {}, [name for name in group if name != error.name] + waiting
        for name, seconds in figures.items():
            row["seconds"].setdefault(name, summary(seconds))
            row["ratios"][name] = ratios(figures[peers.OURS], seconds)
        for name in group:
            workers.drop(name, whole=tight)
    workers.drop(peers.OURS, whole=tight)
    return row


def _targets(row: dict[str, Any]) -> list[dict[str, Any]]:
    where = f"{peers.OPTIMIZERS[row['optimizer']]}, {models.TITLES[row['model']]}"
    others = {name: ratio for name, ratio in row["ratios"].items() if not name.startswith("functopt")}
    out = []
    limits = FUSED.get(row["optimizer"], {})
    limit = limits.get(row["model"], limits.get(""))
    fused = others.get("torch fused")
    if limit and fused:
        out.append(target(f"{where}: time of torch fused", fused["median"], limit))
        del others["torch fused"]
    if others:
        name, ratio = max(others.items(), key=lambda item: item[1]["median"])
        out.append(target(f"{where}: time of the fastest other peer, {name}", ratio["median"], 1.0))
    return out


def _line(row: dict[str, Any]) -> str:
    own = row["seconds"].get(peers.OURS)
    if not own:
        return f"  {row['model']}, {row['optimizer']}: not measured"
    cells = ", ".join(f"{name} {ratio['median']:.2f}" for name, ratio in row["ratios"].items() if name != peers.OURS)
    return f"  {row['model']}, {row['optimizer']}: {own['median'] * 1e3:.2f} ms; of {cells}"


def table(result: dict[str, Any]) -> str:
    """Return one table for each model: contenders down, optimizers across."""
    out = []
    for model in dict.fromkeys(row["model"] for row in result["rows"]):
        rows = [row for row in result["rows"] if row["model"] == model]
        out.append(
            f"{models.TITLES[model]}: {rows[0]['tensors']} tensors, {rows[0]['parameters'] / 1e6:.2f} M parameters"
        )
        names = [name for name in peers.CONTENDERS if any(name in row["seconds"] | row["skipped"] for row in rows)]
        lines = [["", *(peers.OPTIMIZERS[row["optimizer"]] for row in rows)]]
        lines += [[name, *(_cell(row, name) for row in rows)] for name in names]
        out.append(report.grid(lines))
    return "\n\n".join(out)


def _cell(row: dict[str, Any], name: str) -> str:
    if name not in row["ratios"]:
        return "skipped" if name in row["skipped"] else "-"
    if name == peers.OURS:
        return report.spread(row["seconds"][name], 1e3, " ms")
    return report.spread(row["ratios"][name])


def chart(result: dict[str, Any], path: Any) -> None:
    """Draw how many times as long as ours each contender takes."""
    measured: dict[str, list[Any]] = {}  # by model: what was skipped leaves no gap
    for row in result["rows"]:
        if row["ratios"]:
            measured.setdefault(row["model"], []).append(row)
    columns = max(map(len, measured.values()), default=1)
    with report.figure(path, max(len(measured), 1), columns, width=3.2, height=2.9) as axes:
        for i, j, row in ((i, j, row) for i, rows in enumerate(measured.values()) for j, row in enumerate(rows)):
            ax = axes[i][j]
            ax.set_title(f"{peers.OPTIMIZERS[row['optimizer']]}, {models.TITLES[row['model']]}", fontsize=8)
            ratio = {name: row["ratios"][name] for name in peers.CONTENDERS if name in row["ratios"]}
            report.bars(ax, {name: 1 / value["median"] for name, value in ratio.items()})
            ax.set_xlabel("time over that of functopt compiled", fontsize=7)
