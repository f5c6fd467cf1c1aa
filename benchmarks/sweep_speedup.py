"""How much faster a sweep trains N members than torch.optim.AdamW(fused=True) trains them one after the other.

    python benchmarks/sweep_speedup.py [--members 16 64 256] [--repeats 5]

The network, data and space are those of examples/sweep_digits.py. The two are measured in turn in one process: every
repeat times a whole warm sweep (its evaluation excluded) and a few runs alone, of which the median is multiplied by N.
Printed are medians with the smallest and largest ratio of the repeats. The first sweep of each size also says what
compilation costs; set TORCHINDUCTOR_CACHE_DIR to an empty folder to measure it cold.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

import digits
import sweep_digits as demo

import functopt as fo


def measure(members: int, repeats: int, alone: int, epochs: int, batch_size: int) -> str:
    """Return one row of the table."""
    data = digits.load()
    batches = [*digits.batches(data.train, batch_size, epochs)]
    params = demo.init(64, 64, 10, 0)
    sweep = lambda: fo.sweep(demo.loss_fn, params, fo.adamw(), demo.SPACE, batches, members=members, record_every=4)
    first = sweep()
    together, ratios = [], []
    for _ in range(repeats):
        warm = sweep()
        times = [demo.seconds_alone(params, batches, warm.config(member)) for member in range(alone)]
        together.append(warm.seconds)
        ratios.append(statistics.median(times) * members / warm.seconds)
    middle, sequential = statistics.median(ratios), statistics.median(ratios) * statistics.median(together)
    with_compile = sequential / (statistics.median(together) + first.first_step_seconds)
    return (
        f"{members:>7}  {statistics.median(together):>9.2f} s  {sequential:>11.1f} s  "
        f"{middle:>6.1f}x ({min(ratios):.1f} to {max(ratios):.1f})  {first.first_step_seconds:>6.1f} s  "
        f"{with_compile:>6.1f}x"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--alone", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=32)
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    print("members   the sweep   one by one   speed-up (spread)     compile   with it")
    for members in options.members:
        print(measure(members, options.repeats, options.alone, options.epochs, options.batch_size), flush=True)


if __name__ == "__main__":
    main()
