"""Momentum is interesting: what averages make of 200 noisy points, drawn with the library's own ``Ema``.

Three ways to average, with four values of beta, over noise around 0.3 and over a noisy parabola whose first point is an
outlier:

- undamped, ``a = beta * a + y`` from the first point: the momentum of SGD;
- damped, ``a = beta * a + (1 - beta) * y`` from the first point;
- debiased, the same from 0, divided by the weight of what is in it: Adam's.

Run it with ``python examples/momentum.py``; it takes a few seconds and writes ``momentum.png``.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

import functopt as fo

BETAS = (0.5, 0.7, 0.9, 0.99)
VARIANTS = ("undamped", "damped", "debiased")

Curves = dict[tuple[str, str, float], Tensor]  # by data set, variant and beta


def data(points: int = 200, seed: int = 0) -> dict[str, tuple[Tensor, Tensor]]:
    """Return ``(noisy points, what they are without noise)`` for each data set, in float64."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.linspace(-4, 4, points, dtype=torch.float64)
    flat, parabola = torch.full_like(x, 0.3), 1 - (x / 3) ** 2
    noisy = flat + torch.randn(points, dtype=torch.float64, generator=generator)
    curved = parabola + 0.1 * torch.randn(points, dtype=torch.float64, generator=generator)
    curved[0] = 0.5
    return {"noise": (noisy, flat), "parabola": (curved, parabola)}


def curve(points: Tensor, beta: float, variant: str) -> Tensor:
    """Return the average after each point."""
    ema = fo.Ema.zeros(points[0], beta)
    if variant != "debiased":
        ema = ema._replace(total=points[0])
    averages = []
    for point in points:
        ema = ema.update(point, beta, 1.0 if variant == "undamped" else None)
        averages.append(ema.mean if variant == "debiased" else ema.total)
    return torch.stack(averages)


def lag(average: Tensor) -> float:
    """Return by how many points an average of the parabola trails it: how far its vertex has moved."""
    late = np.arange(len(average) // 2, len(average))
    a, b, _ = np.polyfit(late, average.numpy()[late], 2)
    return float(-b / (2 * a) - (len(average) - 1) / 2)


class Reading(NamedTuple):
    """What one sees of one beta."""

    height: float  # of the undamped average of the noise, over the points' own mean; in the end 1 / (1 - beta)
    spread: float  # of the damped average of the noise, over the points' own; in the end sqrt((1 - beta) / (1 + beta))
    lag: float  # of the damped average behind the parabola, in points; in the end beta / (1 - beta)
    damped: float  # mean error of the first 10 points of the parabola's average
    debiased: float


def read(curves: Curves, sets: dict[str, tuple[Tensor, Tensor]], beta: float) -> Reading:
    """Put what one sees into numbers; height, spread and lag are those of the second half."""
    noise, parabola = sets["noise"][0], sets["parabola"][1]
    late = slice(len(noise) // 2, None)
    return Reading(
        float(curves["noise", "undamped", beta][late].mean() / noise[late].mean()),
        float(curves["noise", "damped", beta][late].std() / noise[late].std()),
        lag(curve(parabola, beta, "damped")),
        *(float((curves["parabola", v, beta] - parabola)[:10].mean()) for v in ("damped", "debiased")),
    )


def report(readings: dict[float, Reading]) -> str:
    """Return the readings as a table, and what they say."""
    lines = ["beta   height  spread   lag  first 10: damped  debiased"]
    for beta, r in readings.items():
        lines.append(f"{beta:<6g}{r.height:6.1f}x{r.spread:7.2f}x{r.lag:6.1f}{r.damped:18.2f}{r.debiased:10.2f}")
    most = readings[max(readings)]
    lines += [
        f"Undamped, the average is {most.height:.0f} times too high with the largest beta: it grows with 1/(1 - beta).",
        f"Damped, it has the right height; it is smoother, {most.spread:.2f} of the noise is left, and later.",
        f"But it remembers its first point: the outlier costs it {most.damped:.2f} over the first 10 points of the "
        f"parabola, debiased {most.debiased:.2f}.",
    ]
    return "\n".join(lines)


def draw(curves: Curves, sets: dict[str, tuple[Tensor, Tensor]]) -> Figure:
    """Draw a row for each data set and way to average, a column for each beta."""
    figure = Figure(figsize=(13, 15), layout="constrained")
    panels: Any = figure.subplots(len(sets) * len(VARIANTS), len(BETAS), sharex=True, squeeze=False)
    rows = [(name, variant) for name in sets for variant in VARIANTS]
    for row, (name, variant) in zip(panels, rows, strict=True):
        points, truth = sets[name]
        for ax, beta in zip(row, BETAS, strict=True):
            ax.plot(points, ".", color="tab:blue", alpha=0.45, markersize=3, label="points")
            ax.plot(truth, "--", color="black", linewidth=1.0, label="without noise")
            ax.plot(curves[name, variant, beta], color="tab:red", linewidth=1.5, label="average")
        row[0].set_ylabel(f"{name}, {variant}")
    for beta, top, bottom in zip(BETAS, panels[0], panels[-1], strict=True):
        top.set_title(f"beta = {beta:g}")
        bottom.set_xlabel("point")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


def main(out: Path | None = None, points: int = 200, seed: int = 0) -> Figure:
    """Compute all curves, print what one sees in them, and return the picture, saved to ``out`` if given."""
    sets = data(points, seed)
    curves = {(n, v, b): curve(sets[n][0], b, v) for n in sets for v in VARIANTS for b in BETAS}
    print(report({beta: read(curves, sets, beta) for beta in BETAS}))
    figure = draw(curves, sets)
    if out is not None:
        figure.savefig(out, dpi=80)
        print(f"picture: {out}")
    return figure


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("momentum.png"), help="where the picture goes")
    parser.add_argument("--points", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    main(**vars(parser.parse_args()))
