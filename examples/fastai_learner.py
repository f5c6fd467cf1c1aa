"""A fastai Learner with a functional optimizer: ``opt_func`` makes it, with a group for each part of the network.

The learning rate is looked for, the last layer is trained alone, then all of it, with smaller steps for what is before.
Biases do not decay, as fastai wants it.

Run it with ``python examples/fastai_learner.py`` (``pip install fastai``).
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import digits
import fastai.callback.progress
import fastai.callback.schedule  # noqa: F401  # gives Learner fit_one_cycle and lr_find
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.torch_core import params, set_seed
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

import functopt as fo


def main(epochs: int = 10) -> float:
    """Train and return the accuracy on the test images."""
    set_seed(0)
    data = digits.load()
    loaders = [
        DataLoader(TensorDataset(*split), bs=64, shuffle=i == 0, num_workers=0)
        for i, split in enumerate((data.train, data.valid))
    ]
    opt_func: Any = partial(fo.StatefulOptimizer, tx=fo.adamw(beta2=0.99, eps=1e-5))
    with tempfile.TemporaryDirectory() as folder:
        learn = Learner(
            DataLoaders(*loaders, device="cpu"),
            digits.conv_net(),
            cross_entropy,
            opt_func,
            splitter=lambda net: [params(net[:2]), params(net[2:6]), params(net[6:])],
            wd=0.05,
            path=Path(folder),
        )
        with learn.no_bar():
            lr = learn.lr_find(show_plot=False).valley
            print(f"learning rate {lr:.1e}")
            learn.freeze()
            learn.fit_one_cycle(1, lr)
            learn.unfreeze()
            learn.fit_one_cycle(epochs, slice(lr, 5 * lr))
        opt: Any = learn.opt
        for i, hyper in enumerate(opt.hypers):
            print(f"group {i}: lr {hyper['lr']:.1e}, mom {hyper['mom']:.3f}, wd {hyper['wd']}")
    accuracy = digits.accuracy(learn.model(data.test.images), data.test.labels)
    print(f"test accuracy {accuracy:.2%}")
    return accuracy


if __name__ == "__main__":
    main()
