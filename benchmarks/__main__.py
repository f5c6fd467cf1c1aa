"""The command line of the suite."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

SECTIONS = ["updates", "compiling", "recompiles", "sweeps", "memory", "overhead"]


def parse(arguments: list[str] | None = None) -> Any:
    """Return the options."""
    from benchmarks import models, peers, sweep_models

    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Compare functopt with its peers.")
    full = [model for model in models.MODELS if model != "tiny"]
    members = [1, 4, 16, 64, 256, 1024]
    add = parser.add_argument
    add("--only", nargs="+", choices=SECTIONS, default=SECTIONS, help="sections")
    add("--quick", action="store_true", help="every section with tiny sizes: to see that it runs")
    add("--repeats", type=int, help="repetitions of every figure (20)")
    add("--compile-repeats", type=int, help="repetitions of every cold compilation (3)")
    add("--limit", type=float, default=120.0, help="seconds after which a contender that compiles is given up")
    add("--models", nargs="+", choices=models.MODELS, help="updates: on whose tensors")
    add("--optimizers", nargs="+", choices=peers.OPTIMIZERS, default=list(peers.OPTIMIZERS), help="updates: of which")
    add(
        "--contenders",
        nargs="+",
        choices=peers.CONTENDERS,
        default=list(peers.CONTENDERS),
        help="of which (not in sweeps)",
    )
    add("--tensors", nargs="+", type=int, choices=models.BY_COUNT, help="compiling: how many")
    add(
        "--networks",
        nargs="+",
        choices=sweep_models.NETWORKS,
        default=list(sweep_models.NETWORKS),
        help="sweeps: which",
    )
    add("--members", nargs="+", type=int, help=f"sweeps: how many at once ({members})")
    add("--out", type=Path, default=Path(__file__).parent / "results", help="where tables, JSON and charts go")
    options = parser.parse_args(arguments)
    defaults = {
        "repeats": (20, 2),
        "compile_repeats": (3, 1),
        "models": (full, ["tiny"]),
        "tensors": ([10, 62, 161, 1000], [4]),
        "members": (members, [2]),
    }
    for name, (usual, quick) in defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, quick if options.quick else usual)
    return options


def _machine(about: dict[str, Any]) -> str:
    return f"{about['processor']}, {about['cores']} cores, torch {about['versions']['torch']}"


def main(arguments: list[str] | None = None) -> None:
    """Run the chosen sections."""
    from benchmarks import machine, report

    options = parse(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the workers are ended
    about = machine.describe()
    report.say(", ".join(f"{key} {value}" for key, value in about.items() if key != "versions"))
    report.say(", ".join(f"{name} {version}" for name, version in about["versions"].items()))
    for section in options.only:
        began = time.perf_counter()
        module: Any = import_module(f"benchmarks.{section}")
        report.say(f"\n{module.TITLE}")
        result = module.run(options)
        parts = [f"## {module.TITLE}", _machine(about), module.table(result), report.targets(result["targets"])]
        text = "\n\n".join(part for part in parts if part)
        result = {"machine": about, "repeats": options.repeats, **result, "took": time.perf_counter() - began}
        report.write(options.out, section, module.TITLE, result, text)
        module.chart(result, options.out / f"{section}.png")
        report.say(f"\n{text}\n\n{section}: {result['took'] / 60:.1f} minutes")
    report.say(f"tables, JSON and charts are in {options.out}")


if __name__ == "__main__":
    main()
