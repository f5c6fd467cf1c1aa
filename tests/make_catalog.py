"""Write CATALOG.md: what there is, from the code itself, its docstrings, the registry and the comparisons.

Run it from the root of the repository after anything public has changed: ``python tests/make_catalog.py``. The test
test_catalog.py fails while the file is not what this makes.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import torch  # noqa: E402
from elsewhere import OPTAX, TORCH_OPTIM  # noqa: E402
from parity import FAMILIES  # noqa: E402
from parity.case import settings  # noqa: E402
from registry import ROWS  # noqa: E402

import functopt as fo  # noqa: E402
from functopt import Transform, tree  # noqa: E402
from functopt.hypers import show  # noqa: E402

FILE = ROOT / "CATALOG.md"

CITATION = re.compile(r"([A-ZÀ-Ž][^.:;()\"“]*(?:et al\.)?)[, ]+\"([^\"]+?),?\"[^()\"]{0,60}\((?:[^()]*?)(\d{4})\)")

HOMES = {
    "recipes": "functopt.optimizers",
    "links": "functopt.transforms",
    "wrappers": ("functopt.wrappers", "functopt.combine"),
    "schedules": "functopt.schedules",
}

NOT_MADE_BY = {"combinator"}  # a decorator, which makes wrappers


def public(kind: str) -> dict[str, Callable[..., Any]]:
    """Return what is public of a kind, by name."""
    found = {
        name: thing
        for name, thing in vars(fo).items()
        if inspect.isfunction(thing) and thing.__module__.startswith(HOMES[kind]) and name not in NOT_MADE_BY
    }
    return dict(sorted(found.items()))


def transforms(kind: str) -> dict[str, tuple[Callable[..., Any], Transform]]:
    """Return what makes a transform, with one of them: made of its defaults, or the first of the registry."""
    rows = {row.id.split("/")[0]: row for row in reversed(ROWS)}
    out = {}
    for name, make in public(kind).items():
        if name in rows:
            try:
                tx = make()
            except (TypeError, ValueError):
                tx = rows[name].make()
            out[name] = make, tx
    return out


def papers(thing: Any) -> str:
    """Return the citations in a docstring, joined."""
    text = re.sub(r"\s+", " ", inspect.getdoc(thing) or "")
    found = {}
    for authors, title, year in CITATION.findall(text):
        authors = re.sub(r"^.*(?:, as in|, from|\bsee|\bby|\bof|See|After|From|As in) (?=[A-ZÀ-Ž])", "", authors).strip(
            " ,"
        )
        found[title] = f"{authors}, “{title}” ({year})"
    return "; ".join(found.values())


def first_line(thing: Any) -> str:
    """Return what a docstring begins with, as a line of a table."""
    return re.sub(r":\w+:`([^`<]+?)(?: <[^`]*>)?`", r"`\1`", (inspect.getdoc(thing) or "").split("\n")[0]).replace(
        "|", "\\|"
    )


def state_size(tx: Transform) -> str:
    """Return how many numbers of state there are for each parameter, of a large square matrix."""
    side = 512
    params = {"a": torch.zeros(side, side, device="meta"), "b": torch.zeros(side, side, device="meta")}
    count = sum(leaf.numel() for leaf in tree.leaves(tx.init(params)))
    return f"{count / tree.size(params):.2f}".rstrip("0").rstrip(".")


def hypers(values: Mapping[str, Any]) -> str:
    """Return hypers and their defaults."""
    first = sorted(values, key=lambda name: name != "lr")
    parts = [
        f"{name} {{{hypers(value)}}}" if isinstance(value, Mapping) else f"{name} {show(value)}"
        for name, value in ((name, values[name]) for name in first)
    ]
    return ", ".join(parts)


def layout(tx: Transform) -> str:
    """Say how the leaves may be laid out."""
    if tx.layout_invariant:
        return "any"
    return "packed" if not tx.links_beyond("element", "tree", "leaf") else "leaf by leaf"


def compared(name: str) -> str:
    """Say what an optimizer is compared with: in how many settings with optax, and whether with torch."""
    runs = 0
    for family in FAMILIES.values():
        for case_name, case in family.CASES.items():
            about = re.split("[/,]", case_name)[0]
            if name in (about, SEARCHES.get(about), getattr(case.ours, "__name__", "")):
                runs += len(settings(case_name, case))
    with_torch = [
        cls.__name__ for cls in vars(torch.optim).values() if isinstance(cls, type) and cls.__name__.lower() == name
    ]
    parts = (
        [f"optax ({runs})"] * bool(runs) + [f"torch.optim.{cls}" for cls in with_torch] + ["fastai"] * (name in FASTAI)
    )
    return ", ".join(parts) or "own tests"


# What these cases are about.
SEARCHES = {"zoom": "scale_by_zoom_linesearch", "backtracking": "scale_by_backtracking_linesearch"}

# Compared with the trajectories of fastai in tests/test_seeds.py.
FASTAI = {"adam", "lamb", "larc", "lookahead", "nadam", "qhadam", "radam", "ranger", "rmsprop", "sgd"}


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table in Markdown."""
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def catalog() -> str:
    """Return the text of CATALOG.md."""
    kinds = {kind: transforms(kind) for kind in ("recipes", "links", "wrappers")}
    schedules = public("schedules")
    numbers = ", ".join(f"{len(found)} {kind}" for kind, found in [*kinds.items(), ("schedules", schedules)])
    recipes = [
        (f"`{name}`", papers(make), state_size(tx), hypers(tx.hypers), layout(tx), compared(name))
        for name, (make, tx) in kinds["recipes"].items()
    ]
    links = [
        (f"`{name}`", first_line(make), hypers(tx.hypers), layout(tx), compared(name))
        for name, (make, tx) in kinds["links"].items()
    ]
    wrappers = [
        (f"`{name}`", first_line(make), papers(make), compared(name)) for name, (make, _) in kinds["wrappers"].items()
    ]
    cannot = [(f"`{row.id}`", what, why) for row in ROWS for what, why in row.exceptions.items()]
    parts = [
        "# Catalog",
        f"{numbers}. This page is made from the code by `python tests/make_catalog.py`; a test keeps it current.",
        "**State** is in numbers per parameter, for a 512 by 512 matrix. **Layout** says how leaves may be laid out: "
        "any grouping into leaves gives the same result (*any*), leaves may be packed into one tensor that knows where "
        "each begins (*packed*), or each leaf is worked on by itself (*leaf by leaf*). **Compared with** optax 0.2.8 "
        "in so many settings, to 1e-9 of how far the parameters moved in 20 float64 steps (`tests/parity`), with "
        "`torch.optim` in all its options, with fastai, or in *own tests* with formulas or laws "
        "that are written down there independently.",
        "## Recipes",
        table(["", "paper", "state", "hypers", "layout", "compared with"], recipes),
        "## Links",
        table(["", "what it does", "hypers", "layout", "compared with"], links),
        "## Wrappers and combinators",
        table(["", "what it does", "paper", "compared with"], wrappers),
        "## Schedules",
        table(["", "what it does"], [(f"`{name}`", first_line(make)) for name, make in schedules.items()]),
        "## For those who come from torch",
        table(["torch", "here"], [(f"`{name}`", ours) for name, ours in TORCH_OPTIM.items()]),
        "## For those who come from optax",
        "Names are the same but for these, and `learning_rate`, `b1`, `b2`, which are `lr`, `beta1`, `beta2`. Losses "
        "are those of `torch.nn.functional`.",
        table(["optax", "here"], [(f"`{name}`", ours) for name, ours in OPTAX.items()]),
        "## What cannot be done",
        "Every row of the registry is run in every way: eager, compiled, under `vmap`, both, differentiated, in three "
        "precisions, on odd leaves and trees, packed, sharded, in place. Where one cannot, a test expects it to fail.",
        table(["", "property", "why"], cannot),
    ]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    FILE.write_text(catalog())
    print(FILE.name)
