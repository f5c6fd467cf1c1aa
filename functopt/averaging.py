"""What is done with an average of the parameters: reading it, and giving batch normalisation its statistics."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import Module
from torch.nn.modules.batchnorm import _BatchNorm

from functopt import tree
from functopt.tree import Tree

__all__ = ["averaged_params", "update_bn"]


def averaged_params(state: Tree, params: Tree) -> Tree:
    """Return the average of the parameters that :func:`average_params` or :func:`swa_params` keeps in a state.

    Args:
        state: of an optimizer with one of them in it, however deeply.
        params: the parameters, which give the dtypes, and which are returned as long as nothing is in the average.

    Raises:
        KeyError: nothing in the state is called ``average``, or several entries are.

    >>> tx = chain(sgd(lr=0.1), swa_params())
    >>> averaged_params(tx.update(grads, tx.init(params), params)[1], params)
    {'w': tensor([ 0.9500, -2.1000])}
    """
    average = tree.get(state, "average")

    def read(p: Tensor, total: Tensor, weight: Tensor) -> Tensor:
        return torch.where(weight > 0, total / torch.where(weight > 0, weight, 1.0), p).to(p.dtype)

    return tree.map(read, params, average.total, average.weight)


def update_bn(model: Module, params: Mapping[str, Tensor], batches: Iterable[Any]) -> dict[str, Tensor]:
    """Return the buffers of a model after one pass over data, with statistics of batch normalisation from it alone.

    Averaged parameters need it: the statistics that were kept in training are those of other parameters. It is
    ``torch.optim.swa_utils.update_bn`` as a function, which leaves the model as it is.

    Args:
        model: a module.
        params: its parameters by name, as for ``torch.func.functional_call``.
        batches: what the model is called with: tensors, or lists or tuples of which the first entry is it.

    Returns:
        All buffers by name; those of other layers are what the pass makes of them.

    >>> norm = nn.BatchNorm1d(1, affine=False)
    >>> update_bn(norm, {}, [torch.tensor([[1.0], [3.0]])])["running_mean"]
    tensor([2.])
    """
    twin = copy.deepcopy(model).train()
    for module in twin.modules():
        if isinstance(module, _BatchNorm):
            module.reset_running_stats()
            module.momentum = None  # every batch counts the same
    with torch.no_grad():
        for batch in batches:
            functional_call(twin, dict(params), (batch[0] if isinstance(batch, (list, tuple)) else batch,))
    return dict(twin.named_buffers())
