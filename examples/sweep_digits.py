"""Train 64 configurations of a small network at once, and see which learns best.

Every configuration has its own learning rate, weight decay and beta1. One batched program trains them all; then the
same is timed the usual way, one run after the other with ``torch.optim.AdamW(fused=True)``.

    python examples/sweep_digits.py
    python examples/sweep_digits.py --dataset mnist --data ~/datasets --members 16 --epochs 3
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import digits
import torch
from digits import Digits, Split
from torch import Tensor, nn
from torch.nn import functional as F

import functopt as fo

SPACE = {
    "lr": fo.log_uniform(1e-5, 1e-1),
    "weight_decay": fo.log_uniform(1e-3, 1.0),
    "beta1": fo.uniform(0.6, 0.98),
}


# Data


def load(name: str, folder: Path | None, seed: int) -> Digits:
    """Return the images by name: scikit-learn's digits, or a torchvision data set whose files are in ``folder``."""
    if name == "digits":
        return digits.load(seed)
    if folder is None:
        sys.exit(f"--dataset {name} needs --data DIR, the folder that holds (or shall hold) its files")
    from torchvision import datasets

    kind = {"mnist": datasets.MNIST, "cifar10": datasets.CIFAR10}[name]
    try:
        parts = [kind(str(folder), train=train, download=False) for train in (True, False)]
    except RuntimeError:
        sys.exit(
            f"no {name} files in {folder}. Download them once, where there is a network:\n"
            f"    python -c \"import torchvision; torchvision.datasets.{kind.__name__}('{folder}', download=True)\""
        )
    train, test = (_split(torch.as_tensor(part.data), torch.as_tensor(part.targets)) for part in parts)
    order = torch.randperm(len(train.labels), generator=torch.Generator().manual_seed(seed))
    held_out = max(1, len(order) // 10)
    valid, rest = order[:held_out], order[held_out:]
    mean, std = train.images[rest].mean(), train.images[rest].std()
    scaled = lambda data, part: Split((data.images[part] - mean) / std, data.labels[part])
    return Digits(scaled(train, rest), scaled(train, valid), scaled(test, slice(None)))


def _split(images: Tensor, labels: Tensor) -> Split:
    """Return float images with the channels first."""
    images = images.float().unsqueeze(1) if images.ndim == 3 else images.float().permute(0, 3, 1, 2)
    return Split(images, labels.long())


# A network of two layers, as functions


def init(pixels: int, hidden: int, classes: int, seed: int) -> dict[str, Tensor]:
    """Return the parameters, drawn by ``seed``."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda fan_in, out: torch.randn(fan_in, out, generator=generator) * (2 / fan_in) ** 0.5
    return {
        "hidden.weight": draw(pixels, hidden),
        "hidden.bias": torch.zeros(hidden),
        "out.weight": draw(hidden, classes),
        "out.bias": torch.zeros(classes),
    }


def forward(params: dict[str, Tensor], images: Tensor) -> Tensor:
    """Return the scores of the classes."""
    hidden = torch.relu(images.flatten(1) @ params["hidden.weight"] + params["hidden.bias"])
    return hidden @ params["out.weight"] + params["out.bias"]


def loss_fn(params: dict[str, Tensor], batch: Split) -> Tensor:
    """Return the loss of one member on a batch."""
    return F.cross_entropy(forward(params, batch.images), batch.labels)


# The same, one after the other


def seconds_alone(params: dict[str, Tensor], batches: list[Split], hypers: dict[str, float]) -> float:
    """Train one configuration with torch.optim, and return how long it took."""
    pixels, hidden = params["hidden.weight"].shape
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(pixels, hidden), nn.ReLU(), nn.Linear(hidden, len(params["out.bias"]))
    )
    optimizer = torch.optim.AdamW(
        model.parameters(), hypers["lr"], (hypers["beta1"], 0.999), weight_decay=hypers["weight_decay"], fused=True
    )
    began = time.perf_counter()
    for batch in batches:
        optimizer.zero_grad()
        F.cross_entropy(model(batch.images), batch.labels).backward()
        optimizer.step()
    return time.perf_counter() - began


def main(arguments: list[str] | None = None) -> float:
    """Run the sweep, print what came out, save the pictures, and return the best member's test accuracy."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--dataset", choices=["digits", "mnist", "cifar10"], default="digits")
    parser.add_argument("--data", type=Path, help="folder with the files of mnist or cifar10")
    parser.add_argument("--members", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--alone", type=int, default=3, help="how many members to time one after the other")
    parser.add_argument("--out", type=Path, default=Path("sweep_pictures"), help="where the pictures and the CSV go")
    options = parser.parse_args(arguments)
    began = time.perf_counter()

    data = load(options.dataset, options.data, options.seed)
    batches = [*digits.batches(data.train, options.batch_size, options.epochs, options.seed)]
    params = init(data.train.images[0].numel(), options.hidden, int(data.train.labels.max()) + 1, options.seed)
    print(
        f"{options.dataset}: {len(data.train.labels)} images to train on, {len(batches)} steps of {options.batch_size}"
    )

    def accuracy(params: dict[str, Tensor]) -> Tensor:
        return (forward(params, data.valid.images).argmax(-1) == data.valid.labels).double().mean()

    result = fo.sweep(
        loss_fn,
        params,
        fo.adamw(),
        SPACE,
        batches,
        members=options.members,
        seed=options.seed,
        eval_fn=accuracy,
        mode="max",
        record_every=4,
    )
    print(result.table())
    best = result.params(result.best)
    test = digits.accuracy(forward(best, data.test.images), data.test.labels)
    print(f"best member: {result.best}, test accuracy {test:.1%} (chosen by its accuracy on the validation images)")

    options.out.mkdir(parents=True, exist_ok=True)
    for name, axes in {
        "curves": result.plot(color="lr"),
        "lr": result.plot(x="lr", color="weight_decay"),
        "heat_map": result.plot(x="lr", y="beta1"),
    }.items():
        axes.figure.savefig(options.out / f"{name}.png", dpi=120)  # pyright: ignore[reportAttributeAccessIssue]
    result.to_csv(options.out / "sweep.csv")
    print(f"pictures and sweep.csv are in {options.out}/")

    if options.alone:
        chosen = [i * options.members // options.alone for i in range(options.alone)]
        times = [seconds_alone(params, batches, result.config(member)) for member in chosen]
        sequential = statistics.median(times) * options.members
        running = result.seconds - result.first_step_seconds
        print(
            f"one after the other with torch.optim.AdamW(fused=True) the {options.members} runs take "
            f"{sequential:.0f} s (measured on {len(times)} of them: {min(times):.2f} to {max(times):.2f} s each).\n"
            f"the sweep took {result.seconds:.1f} s, {sequential / result.seconds:.1f} times less; "
            f"without compilation ({result.first_step_seconds:.1f} s) {sequential / running:.1f} times less"
        )
    print(f"all of it took {time.perf_counter() - began:.0f} s")
    return test


if __name__ == "__main__":
    main()
