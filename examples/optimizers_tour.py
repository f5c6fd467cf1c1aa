"""The optimizers of fastai's lesson "09_optimizers", one after the other on the same network.

SGD, SGD with weight decay and with momentum, Adam, LAMB, and the NAdam of an article that went on from there: each with
the lesson's settings, once at a constant learning rate and once along its cosine schedule. At the end there is a table
of all epochs, and a picture of all runs.

    python examples/optimizers_tour.py
    python examples/optimizers_tour.py --dataset imagenette --data ~/datasets

The first takes about 20 seconds: it trains the lesson's network, without its last layers, on scikit-learn's digits,
once for each run, so that differences of a percent or two are chance. The second is the lesson itself, with what its
authors saw beside what is seen here. It wants a GPU: on two CPU cores an epoch takes minutes, and one of NAdam's
xresnet34 an hour; ``--only`` and ``--epochs`` make it shorter.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import digits
import imagenette
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import functopt as fo
from functopt.plotting import smoothed
from functopt.training import Callback, Learner, Recorder, Run, accuracy, combine_scheds, fit, validate

# The tour


class Stop(NamedTuple):
    """An optimizer, and what its authors saw with it on Imagenette."""

    name: str
    tx: fo.Transform
    network: str
    epochs: int
    published: dict[str, float]  # validation accuracy by the kind of learning rate


TOUR = {
    "sgd": Stop("SGD", fo.sgd(lr=0.4), "cnn", 1, {"constant": 0.418, "cosine": 0.482}),
    "sgd-wd": Stop(
        "SGD, weight decay", fo.sgd(lr=0.3, weight_decay=0.01, decoupled=True), "cnn", 1, {"constant": 0.310}
    ),
    # in the lesson the weights decay after the step, hence the chain
    "sgd-momentum": Stop(
        "SGD, momentum",
        fo.chain(fo.trace(momentum=0.9), fo.scale_by_lr(), fo.shrink_weights()).with_hypers(lr=0.3, weight_decay=0.01),
        "cnn", 1, {"constant": 0.396},
    ),
    "adam": Stop("Adam", fo.adam(lr=1e-3, beta2=0.99, eps=1e-5), "cnn", 3, {"constant": 0.672}),
    "lamb": Stop("LAMB", fo.lamb(lr=3e-3, beta2=0.99, form="notebook"), "cnn", 3, {"constant": 0.646}),
    # the learning rate and the decay are chosen here
    "nadam": Stop(
        "NAdam",
        fo.nadam(lr=1e-3, beta2=0.99, eps=1e-5, weight_decay=0.01, form="article", decoupled=True),
        "xresnet34", 10, {"constant": 0.8096},
    ),
}  # fmt: skip

ABOUT_PUBLISHED = """
"published" is what the authors printed; nothing of it was measured here. NAdam's is the article's, whose learning rate
is not known here. All others are those of fastai's notebook, which had the first version of Imagenette (12894 images to
train on, 500 to validate with) and normalised them in its first run only; torchvision reads the second version (9469
and 3925 images), and all runs here normalise them."""


def cosine(lr: float) -> Any:
    """Return the lesson's schedule, from 0.3 up to 0.6 and down to 0.2, where it had had a constant 0.4; or so much
    higher or lower."""
    f = lr / 0.4
    return combine_scheds([0.3, 0.7], [fo.cosine_schedule(0.3 * f, 0.6 * f), fo.cosine_schedule(0.6 * f, 0.2 * f)])


# A run


class Result(NamedTuple):
    """What came of an optimizer with one kind of learning rate."""

    stop: Stop
    lr: str
    recorder: Recorder
    rows: list[dict[str, float]]  # of the epochs
    seconds: float

    @property
    def name(self) -> str:
        return self.stop.name if self.lr == "constant" else f"{self.stop.name}, {self.lr}"


class OnTrainingData(Callback):
    """After each epoch measure on the training data what is measured on the validation data."""

    def __init__(self, batches: DataLoader) -> None:
        self.batches = batches
        self.rows: list[dict[str, float]] = []

    def after_epoch(self, run: Run) -> None:
        self.rows.append(validate(run.learner, self.batches, accuracy))


def train(
    stop: Stop,
    lr: str,
    model: nn.Module,
    data: Sequence[TensorDataset],
    epochs: int,
    batch_size: int,
    seed: int,
    progress: bool | None = False,
) -> Result:
    """Train a network with an optimizer of the tour, on the first part of the data; validate on the second."""
    train_data, valid_data = data
    order = torch.Generator().manual_seed(seed)
    shuffled = DataLoader(train_data, batch_size, shuffle=True, drop_last=True, generator=order)
    on_train = OnTrainingData(DataLoader(train_data, 4 * batch_size))
    learner = Learner(model, fo.StatefulOptimizer(model.named_parameters(), stop.tx), cross_entropy)
    began = time.perf_counter()
    recorder = fit(
        learner,
        shuffled,
        DataLoader(valid_data, 4 * batch_size),
        epochs=epochs,
        metrics=accuracy,
        callbacks=on_train,
        schedule={"lr": cosine(stop.tx.hypers["lr"])} if lr == "cosine" else None,
        progress=progress,
    )
    rows = [
        {
            "train loss": trained["valid_loss"],
            "train accuracy": trained["accuracy"],
            "valid loss": validated["valid_loss"],
            "valid accuracy": validated["accuracy"],
        }
        for trained, validated in zip(on_train.rows, recorder.epochs, strict=True)
    ]
    return Result(stop, lr, recorder, rows, time.perf_counter() - began)


def make_network(name: str, shrink: int, seed: int) -> nn.Module:
    """Return a network with weights drawn by ``seed``.

    Args:
        name: ``"digits"``, ``"cnn"`` or ``"xresnet34"``.
        shrink: divides the widths of its layers.
        seed: of the weights.
    """
    narrow = lambda *widths: [width // shrink for width in widths]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == "digits":  # of 8x8 pixels, of which the first three layers leave 2x2
            return imagenette.conv_net(channels=1, widths=narrow(32, 64))
        if name == "cnn":
            return nn.Sequential(imagenette.Normalize(), *imagenette.conv_net(widths=narrow(32, 64, 128, 256)))
        return nn.Sequential(imagenette.Normalize(), *imagenette.xresnet34(widths=narrow(64, 128, 256, 512)))


# What is shown of the runs


def show(names: Sequence[str], blocks: Sequence[Sequence[Sequence[Any]]]) -> None:
    """Print a table of blocks of rows: drawn by rich on a terminal, plain elsewhere."""
    written = [[[_short(value) for value in row] for row in block] for block in blocks]
    if sys.stdout.isatty():
        try:
            from rich.box import HORIZONTALS
            from rich.console import Console
            from rich.table import Table
        except ImportError:
            pass
        else:
            table = Table(*names, box=HORIZONTALS, collapse_padding=True)
            table.columns[0].no_wrap = True
            for column in table.columns[1:]:
                column.justify = "right"
            for block in written:
                for row in block:
                    table.add_row(*row, end_section=row is block[-1])
            Console().print(table)
            return
    rows = [list(names), *(row for block in written for row in block)]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    for name, *rest in rows:
        print("  ".join([name.ljust(widths[0]), *map(str.rjust, rest, widths[1:])]).rstrip())


def _short(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def summarise(results: Sequence[Result], with_published: bool) -> None:
    """Print how each run ended, the best first."""
    names = ["optimizer", "learning rate", "epochs", "seconds", "valid accuracy"]
    lines = []
    for result in sorted(results, key=lambda result: -result.rows[-1]["valid accuracy"]):
        peak = result.stop.tx.hypers["lr"]
        course = [cosine(peak)(position).item() for position in (0, 0.3, 1)] if result.lr == "cosine" else [peak]
        lr = " to ".join(f"{value:g}" for value in course)
        published = result.stop.published.get(result.lr)
        where = f"{published:.4f} ({result.stop.network}, epoch {result.stop.epochs})" if published else ""
        ours = [result.name, lr, len(result.rows), f"{result.seconds:.1f}", result.rows[-1]["valid accuracy"]]
        lines.append([*ours, where] if with_published else ours)
    show([*names, "published"] if with_published else names, [lines])
    if with_published:
        print(ABOUT_PUBLISHED)


def plot(results: Sequence[Result]) -> Any:
    """Draw the losses and the accuracies of all runs: a colour for each optimizer, dashed along the schedule."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    figure = Figure(figsize=(11, 6), layout="constrained")
    losses, accuracies = figure.subplots(1, 2, sharex=True)
    colors = {name: f"C{i}" for i, name in enumerate(dict.fromkeys(result.stop.name for result in results))}
    for result in results:
        color, dashed = colors[result.stop.name], result.lr == "cosine"
        style: Any = {"color": color, "linestyle": "--" if dashed else "-", "linewidth": 1.4, "label": result.name}
        losses.plot(result.recorder.steps, smoothed(result.recorder.losses, decay=0.9), **style)
        accuracies.plot(
            [row["step"] for row in result.recorder.epochs],
            [row["valid accuracy"] for row in result.rows],
            marker="o",
            markersize=4,
            markerfacecolor="white" if dashed else color,
            **style,
        )
    losses.set(xlabel="step", ylabel="training loss, smoothed", yscale="log")
    losses.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    losses.yaxis.set_major_formatter("{x:g}")
    losses.yaxis.set_minor_formatter(NullFormatter())
    accuracies.set(xlabel="step", ylabel="validation accuracy")
    figure.legend(*accuracies.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def _or(given: int | None, default: int) -> int:
    return default if given is None else given


def main(arguments: list[str] | None = None) -> list[Result]:
    """Go on the tour, print what came of it, save the picture, and return the runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=["digits", "imagenette"], default="digits")
    parser.add_argument("--data", type=Path, metavar="DIR", help="the folder that holds imagenette2-160")
    parser.add_argument("--only", nargs="+", choices=list(TOUR), default=list(TOUR), help="these optimizers")
    parser.add_argument("--lr", choices=["both", "constant", "cosine"], default="both")
    parser.add_argument("--epochs", type=int, help="5 for digits by default, as published for Imagenette")
    parser.add_argument("--batch-size", type=int, help="32 for digits by default, 128 for Imagenette")
    parser.add_argument("--network", choices=["cnn", "xresnet34"], help="for Imagenette; as published by default")
    parser.add_argument("--size", type=int, default=128, help="pixels of a side, for Imagenette")
    parser.add_argument(
        "--shrink", type=int, choices=[1, 2, 4, 8, 16], default=1, help="divide the widths of the network by this"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the weights and of the order of the images")
    parser.add_argument("--out", type=Path, default=Path("optimizers_tour.png"), help="where the picture goes")
    options = parser.parse_args(arguments)
    began = time.perf_counter()

    on_digits = options.dataset == "digits"
    if on_digits:
        torch.set_num_threads(1)  # so small a network leaves a second one nothing to do but to wait
        data = [TensorDataset(*part) for part in digits.load(options.seed)[:2]]
    elif options.data is None:
        sys.exit("--dataset imagenette needs --data DIR, the folder that holds (or shall hold) imagenette2-160")
    else:
        data = imagenette.load(options.data, options.size)
    print(f"{options.dataset}: {len(data[0])} images to train on, {len(data[1])} to validate with")
    device = torch.device("cuda" if torch.cuda.is_available() and not on_digits else "cpu")
    results = []
    for name, lr in product(options.only, ("constant", "cosine") if options.lr == "both" else (options.lr,)):
        stop = TOUR[name]
        network = "digits" if on_digits else options.network or stop.network
        model = make_network(network, options.shrink, options.seed).to(device)
        epochs = _or(options.epochs, 5 if on_digits else stop.epochs)
        batch_size = _or(options.batch_size, 32 if on_digits else 128)
        if not on_digits:
            print(f"{stop.name}, {lr} learning rate, {network}, {epochs} epochs", flush=True)
        progress = False if on_digits else None
        result = train(stop, lr, model, data, epochs, batch_size, options.seed, progress)
        if result.rows:
            results.append(result)
        if result.recorder.interrupted:
            break
    if not results:
        sys.exit("interrupted before the first epoch was done")

    show(
        ["optimizer", "epoch", *results[0].rows[0]],
        [[[result.name, i, *row.values()] for i, row in enumerate(result.rows, 1)] for result in results],
    )
    print()
    summarise(results, with_published=not on_digits)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    plot(results).savefig(options.out, dpi=120)
    print(f"the picture is {options.out}; all of it took {time.perf_counter() - began:.0f} s")
    return results


if __name__ == "__main__":
    main()
