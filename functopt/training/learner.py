"""What is trained: a model with an optimizer, or parameters with a functional one, behind the same few methods."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import optree
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value

from functopt import tree
from functopt.base import Transform
from functopt.compile import compile as compiled
from functopt.hypers import check_hyper
from functopt.tree import Tree

__all__ = ["Learner", "PureLearner", "Trained"]


class Trained(Protocol):
    """What the loop, the learning rate finder and checkpoints ask of what they train.

    A batch is a tuple of the model's inputs followed by the target.
    """

    @property
    def hypers(self) -> Sequence[Mapping[str, Any]]:
        """The hypers of every group: values to read."""
        ...

    def set_hypers(self, **values: Any) -> None:
        """Set hypers for the steps that follow."""

    def train(self, mode: bool = True) -> None:
        """Make dropout and normalisation behave as in training, or not."""

    def loss(self, batch: Any) -> Tensor:
        """Return the loss of a batch, with what a step needs to follow it."""
        ...

    def step(self, loss: Tensor) -> None:
        """Take the step that belongs to a loss."""

    def predict(self, batch: Any) -> tuple[Any, Any]:
        """Return the predictions for a batch and its target; nothing is changed."""
        ...

    def loss_of(self, predictions: Any, target: Any, /) -> Tensor:
        """Return the loss of predictions."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of all that training changes."""
        ...

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Put back what :meth:`state_dict` returned, into the same tensors."""


def _split(batch: Any, device: torch.device) -> tuple[tuple[Any, ...], Any]:
    if not isinstance(batch, (tuple, list)) or len(batch) < 2:
        raise TypeError(f"a batch is a tuple of inputs and the target, got a {type(batch).__name__}")
    *inputs, target = (_to(part, device) for part in batch)
    return tuple(inputs), target


def _to(part: Any, device: torch.device) -> Any:
    return optree.tree_map(
        lambda leaf: leaf.to(device, non_blocking=True) if isinstance(leaf, Tensor) else leaf, part, none_is_leaf=True
    )


def _device(model: nn.Module) -> torch.device:
    return next((param.device for param in model.parameters()), torch.device("cpu"))


class Learner:
    """A model with a classic optimizer, changed in place.

    Args:
        model: called with a batch's inputs.
        optimizer: a :class:`StatefulOptimizer <functopt.StatefulOptimizer>`, or a torch optimizer behind the same
            interface, ``from_torch(torch.optim.X)(params)``.
        loss_fn: ``(predictions, target) -> loss``.

    Raises:
        TypeError: the optimizer does not have that interface.

    >>> learner = Learner(model, fo.StatefulOptimizer(model.parameters(), fo.adamw(lr=1e-3)), F.cross_entropy)
    """

    def __init__(self, model: nn.Module, optimizer: Any, loss_fn: Callable[[Any, Any], Tensor]) -> None:
        if not (hasattr(optimizer, "set_hypers") and hasattr(optimizer, "freeze_to")):
            raise TypeError(
                f"Learner: the optimizer is a {type(optimizer).__name__}, expected a StatefulOptimizer; "
                "make one of torch's with from_torch(torch.optim.X, ...)(params)"
            )
        self.model, self.optimizer, self.loss_of = model, optimizer, loss_fn

    @property
    def hypers(self) -> Sequence[Mapping[str, Any]]:
        """The hypers of every param group."""
        return self.optimizer.hypers

    def set_hypers(self, **values: Any) -> None:
        """Set hypers as :meth:`StatefulOptimizer.set_hypers <functopt.control.GroupControl.set_hypers>` does."""
        self.optimizer.set_hypers(**values)

    def train(self, mode: bool = True) -> None:
        """Put the model into training mode, or out of it."""
        self.model.train(mode)

    def loss(self, batch: Any) -> Tensor:
        """Return the loss of a batch, with its graph."""
        inputs, target = _split(batch, _device(self.model))
        return self.loss_of(self.model(*inputs), target)

    def step(self, loss: Tensor) -> None:
        """Compute the gradients of a loss, step, and clear the gradients."""
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    @torch.no_grad()
    def predict(self, batch: Any) -> tuple[Any, Any]:
        """Return the model's predictions for a batch, in the mode that the model is in, and the target."""
        inputs, target = _split(batch, _device(self.model))
        return self.model(*inputs), target

    def _tensors(self) -> dict[str, Tensor]:
        # all buffers, also those that the model's own state_dict leaves out
        return {
            name: tensor.detach()
            for name, tensor in [
                *self.model.named_parameters(remove_duplicate=False),
                *self.model.named_buffers(remove_duplicate=False),
            ]
        }

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of parameters, buffers, the optimizer's state and groups, and which parameters are frozen."""
        return {
            "model": {name: tensor.clone() for name, tensor in self._tensors().items()},
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "frozen_idx": self.optimizer.frozen_idx,
            "frozen": [name for name, param in self.model.named_parameters() if not param.requires_grad],
        }

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Copy a saved state into parameters, buffers and optimizer.

        Raises:
            ValueError: tensors or groups do not match those here. Nothing is changed then.
        """
        _check_entries(state_dict, {"model", "optimizer", "frozen_idx", "frozen"}, "Learner")
        own, saved = self._tensors(), state_dict["model"]
        _check_tensors(own, saved)
        self.optimizer.load_state_dict(copy.deepcopy(state_dict["optimizer"]))
        self.optimizer.zero_grad()
        for name, tensor in own.items():
            tensor.copy_(saved[name])
        # not freeze_to: parameters may be frozen one by one, too
        self.optimizer.frozen_idx = state_dict["frozen_idx"]
        for name, param in self.model.named_parameters():
            param.requires_grad_(name not in state_dict["frozen"])


class PureLearner:
    """Parameters with a functional optimizer. The model only lends its structure and its first values.

    ``params``, ``buffers`` and ``state`` are attributes that are replaced by new ones at every step; nothing is written
    into, so that whoever keeps one keeps that moment. (With ``compile=True`` the update is written into the memory of
    the one before.)

    Args:
        model: a module; its own parameters and buffers stay as they are. All parameters train, also those that do not
            require gradients: to freeze one give it a learning rate of 0.
        tx: the optimizer.
        loss_fn: ``(predictions, target) -> loss``.
        compile: compile the gradient and the update.

    >>> learner = PureLearner(model, fo.adamw(fo.cosine_onecycle_schedule(1000, 1e-2)), F.cross_entropy)
    """

    def __init__(
        self, model: nn.Module, tx: Transform, loss_fn: Callable[[Any, Any], Tensor], *, compile: bool = False
    ) -> None:
        self.model, self.tx, self.loss_of = model, tx, loss_fn
        self.params: Tree = {name: param.detach().clone() for name, param in model.named_parameters()}
        self.buffers: Tree = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
        self.state: Tree = tx.init(self.params)
        self._given: dict[str, Any] = {}
        self._pending: tuple[Tensor, Tree] | None = None
        self._grad = torch.compile(self._differentiate) if compile else self._differentiate
        self._update = compiled(tx.update, donate=(2, 1)) if compile else tx.update

    def _differentiate(self, params: Tree, buffers: Tree, inputs: tuple[Any, ...], target: Any) -> Any:
        def loss_fn(params: Tree) -> tuple[Tensor, Tree]:
            after = {name: buffer.clone() for name, buffer in buffers.items()}  # normalisation writes into them
            predictions = functional_call(self.model, {**params, **after}, inputs)
            return self.loss_of(predictions, target), after

        return grad_and_value(loss_fn, has_aux=True)(params)

    @property
    def hypers(self) -> Sequence[Mapping[str, Any]]:
        """The hypers in a list of one: there are no groups, a hyper may be a tree instead."""
        return [{**self.tx._defaults, **self._given}]

    def set_hypers(self, **values: Any) -> None:
        """Set hypers for the steps that follow: numbers, tensors, schedules, or trees that are a prefix of the
        parameters.

        Raises:
            KeyError: the optimizer has no hyper of a name.
            ValueError: a value is out of range or does not fit the parameters. Nothing is changed then.
        """
        self.tx.check_names(values)
        for name, value in values.items():
            check_hyper("PureLearner", name, value, self.params, schedules=self.tx.takes_schedule(name))
        self._given.update(values)

    def train(self, mode: bool = True) -> None:
        """Put the model into training mode, or out of it."""
        self.model.train(mode)

    def loss(self, batch: Any) -> Tensor:
        """Return the loss of a batch; its gradients are kept for the step."""
        inputs, target = _split(batch, _device(self.model))
        grads, (loss, self._buffers_after) = self._grad(self.params, self.buffers, inputs, target)
        self._pending = loss, grads
        return loss

    def step(self, loss: Tensor) -> None:
        """Take the step that belongs to the loss that was computed last.

        Raises:
            ValueError: it is another loss, whose gradients are not known.
        """
        if self._pending is None or self._pending[0] is not loss:
            raise ValueError("PureLearner: step wants the loss that it returned; what is added to it goes into loss_fn")
        _, grads = self._pending
        self.params, self.state = self._update(grads, self.state, self.params, self._given)
        self.buffers, self._pending = self._buffers_after, None

    @torch.no_grad()
    def predict(self, batch: Any) -> tuple[Any, Any]:
        """Return the predictions for a batch, in the mode that the model is in, and the target."""
        inputs, target = _split(batch, _device(self.model))
        buffers = {name: buffer.clone() for name, buffer in self.buffers.items()}
        return functional_call(self.model, {**self.params, **buffers}, inputs), target

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of parameters, buffers, the optimizer's state and the hypers that were set."""
        own = {"params": self.params, "buffers": self.buffers, "state": self.state, "hypers": self._given}
        return _copied(own)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a saved state.

        Raises:
            ValueError: parameters or state do not match those here. Nothing is changed then.
        """
        _check_entries(state_dict, {"params", "buffers", "state", "hypers"}, "PureLearner")
        _check_tensors(self.params, state_dict["params"])
        _check_tensors(self.buffers, state_dict["buffers"])
        if optree.tree_structure(state_dict["state"]) != optree.tree_structure(self.state):
            raise ValueError("load_state_dict: the saved state is that of another optimizer")
        self.tx.check_names(state_dict["hypers"])
        fresh = tree.map(_like, state_dict["state"], self.state)  # the one that can fail comes first
        self.params = tree.map(_like, state_dict["params"], self.params)
        self.buffers = tree.map(_like, state_dict["buffers"], self.buffers)
        self.state, self._given, self._pending = fresh, _copied(state_dict["hypers"]), None

    @torch.no_grad()
    def to_model(self) -> nn.Module:
        """Copy parameters and buffers into the model, and return it."""
        own = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        for name, tensor in {**self.params, **self.buffers}.items():
            own[name].copy_(tensor)
        return self.model


def _copied(own: Any) -> Any:
    return optree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, own)


def _like(saved: Tensor, own: Tensor) -> Tensor:
    """Return a copy of a saved tensor on the device and in the dtype of the one in whose place it comes."""
    if saved.shape != own.shape:
        raise ValueError(
            f"load_state_dict: the saved state has a tensor of shape {list(saved.shape)} where one of "
            f"{list(own.shape)} is here; it is that of another optimizer"
        )
    return saved.detach().to(own.device, own.dtype, copy=True)


def _check_entries(state_dict: Mapping[str, Any], wanted: set[str], whose: str) -> None:
    if {*state_dict} != wanted:
        raise ValueError(f"load_state_dict: expected the state of a {whose}, got the entries {sorted(state_dict)}")


def _check_tensors(own: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    for name in [*own, *saved]:
        here, there = own.get(name), saved.get(name)
        if here is None or there is None or here.shape != there.shape:
            shapes = [list(tensor.shape) if tensor is not None else "not there" for tensor in (here, there)]
            raise ValueError(f"load_state_dict: {name!r} is {shapes[0]} here and {shapes[1]} in the saved state")
