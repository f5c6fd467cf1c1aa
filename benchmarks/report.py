"""Tables of text, JSON and charts."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

OURS, THEIRS = "#c44e52", "#7f9bb3"


def say(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)


def spread(figure: Mapping[str, float], scale: float = 1.0, unit: str = "") -> str:
    """Return a median with its 10th and 90th percentile."""
    text = lambda key: f"{figure[key] * scale:.3g}"
    return f"{text('median')}{unit} ({text('p10')}-{text('p90')})"


def grid(lines: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; the first line is its head."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    rows = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |" for line in lines]
    rule = "| " + " | ".join("-" * w for w in widths) + " |"
    return "\n".join([rows[0], rule, *rows[1:]])


def targets(lines: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of targets."""
    if not lines:
        return ""
    head = ["target", "", "measured", "holds"]
    return grid(
        [head]
        + [[line["what"], line["target"], f"{line['value']:.3g}", "yes" if line["reached"] else "NO"] for line in lines]
    )


def write(folder: Path, section: str, title: str, result: Mapping[str, Any], text: str) -> None:
    """Write a section's JSON and table."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{section}.json").write_text(json.dumps({"title": title, **result}, indent=1) + "\n")
    (folder / f"{section}.md").write_text(text + "\n")


@contextlib.contextmanager
def figure(path: Path, rows: int, columns: int, width: float = 4.5, height: float = 3.5) -> Iterator[Any]:
    """Give axes to draw on, ``[rows][columns]``, and save them as a picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    picture, axes = pyplot.subplots(rows, columns, figsize=(width * columns, height * rows), squeeze=False)
    yield axes
    for ax in axes.flat:
        ax.tick_params(labelsize=7)
        ax.set_visible(ax.has_data())
    picture.tight_layout()
    picture.savefig(path, dpi=110, bbox_inches="tight")
    pyplot.close(picture)


def bars(ax: Any, values: Mapping[str, float], form: str = "{:.2f}") -> None:
    """Draw horizontal bars, the first on top, ours in a colour of their own."""
    names = list(values)[::-1]
    colours = [OURS if name.startswith("functopt") else THEIRS for name in names]
    drawn = ax.barh(names, [values[name] for name in names], color=colours)
    ax.bar_label(drawn, [form.format(values[name]) for name in names], fontsize=6, padding=2)
    ax.margins(x=0.15)
    ax.spines[["top", "right"]].set_visible(False)
