"""Numbers that say how good predictions are, over batches of any size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import optree
import torch
from torch import Tensor

from functopt.training.learner import Trained

__all__ = ["Gathered", "Mean", "Metric", "accuracy", "as_metrics", "validate"]


class Metric(Protocol):
    """Adds up over batches what is asked at the end. Tensors stay on their device until then."""

    def reset(self) -> None:
        """Forget all batches."""

    def update(self, predictions: Any, target: Any) -> None:
        """Take in a batch."""

    def value(self) -> Tensor | float:
        """Return the value over all batches since the reset."""
        ...


class Mean:
    """The mean over all examples of what a function says of a batch: batches count by their number of examples.

    ``sum(n_b·fn(b)) / sum(n_b)``, in float64, where ``n_b`` is the first dimension of the target.

    Args:
        fn: ``(predictions, target) ->`` the mean over the batch, a number or a 0-d tensor.
    """

    def __init__(self, fn: Callable[[Any, Any], Any]) -> None:
        self.fn = fn
        self.reset()

    def reset(self) -> None:
        """Forget all batches."""
        self._total: Any = 0.0
        self._count = 0

    def update(self, predictions: Any, target: Any) -> None:
        """Take in a batch.

        Raises:
            ValueError: the function's value is not one number, or the target has no examples to count.
        """
        value = self.fn(predictions, target)
        if isinstance(value, Tensor):
            if value.numel() != 1:
                raise ValueError(f"{_name(self.fn)}: a metric of a batch is one number, got shape {list(value.shape)}")
            value = _wide(value.detach().reshape(()))
        count = _examples(target)
        self._total, self._count = self._total + count * value, self._count + count

    def value(self) -> Tensor | float:
        """Return the mean over all examples since the reset.

        Raises:
            ValueError: there were none.
        """
        if not self._count:
            raise ValueError(f"{_name(self.fn)}: there is no mean of no examples")
        return self._total / self._count


class Gathered:
    """What a function says of all predictions and targets together: for what is no mean over batches.

    Args:
        fn: ``(predictions, target) ->`` a number, called once with those of all batches, concatenated.

    >>> {"auc": Gathered(lambda scores, labels: roc_auc_score(labels.cpu(), scores[:, 1].cpu()))}
    """

    def __init__(self, fn: Callable[[Any, Any], Any]) -> None:
        self.fn = fn
        self.reset()

    def reset(self) -> None:
        """Forget all batches."""
        self._kept: list[tuple[Any, Any]] = []

    def update(self, predictions: Any, target: Any) -> None:
        """Take in a batch."""
        self._kept.append((predictions, target))

    def value(self) -> Tensor | float:
        """Return what the function says of all batches since the reset.

        Raises:
            ValueError: there were none.
        """
        if not self._kept:
            raise ValueError(f"{_name(self.fn)}: there are no predictions")
        predictions, target = zip(*self._kept, strict=True)
        join: Any = lambda parts: optree.tree_map(lambda *leaves: torch.cat(leaves), *parts)
        return self.fn(join(predictions), join(target))


def accuracy(predictions: Tensor, target: Tensor) -> Tensor:
    """Return the fraction of right classes.

    Args:
        predictions: scores, [N, classes, ...].
        target: the classes, [N, ...].

    Raises:
        ValueError: the shapes do not fit.
    """
    if predictions.ndim < 2 or predictions.shape[:1] + predictions.shape[2:] != target.shape:
        raise ValueError(
            f"accuracy: expected scores [N, classes, ...] and a target [N, ...], got {list(predictions.shape)} and "
            f"{list(target.shape)}"
        )
    return _wide(predictions.argmax(1) == target).mean()


def as_metrics(metrics: Any) -> dict[str, Metric]:
    """Return metrics by name.

    Args:
        metrics: one, a list, or a dict by name, of functions ``(predictions, target) -> mean of the batch`` and of
            objects like :class:`Metric`. In a list a function goes by its own name, an object by its class's.

    Raises:
        TypeError: one is neither.
        ValueError: two have the same name.
    """
    if not isinstance(metrics, Mapping):
        given = metrics if isinstance(metrics, Sequence) else () if metrics is None else (metrics,)
        metrics = {}
        for metric in given:
            if _name(metric) in metrics:
                raise ValueError(f"metrics: two are called {_name(metric)!r}; give a dict with a name for each")
            metrics[_name(metric)] = metric
    for name in ("epoch", "step", "train_loss", "valid_loss"):
        if name in metrics:
            raise ValueError(f"metrics: {name!r} is the name of something else in a row of the recorder")
    return {name: _as_metric(name, metric) for name, metric in metrics.items()}


def _as_metric(name: str, metric: Any) -> Metric:
    if isinstance(metric, type):
        raise TypeError(f"metrics: {name!r} is the class {metric.__name__}; call it to make a metric")
    if all(callable(getattr(metric, method, None)) for method in ("reset", "update", "value")):
        return metric
    if callable(metric):
        return Mean(metric)
    raise TypeError(
        f"metrics: {name!r} is a {type(metric).__name__}; expected a function (predictions, target) -> mean of the "
        "batch, or an object with reset, update and value"
    )


@torch.no_grad()
def validate(
    learner: Trained,
    batches: Iterable[Any],
    metrics: Any = None,
    *,
    between: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Return the loss and other metrics over batches, outside of training mode.

    The loss is taken for the mean over a batch, and averaged over all examples (see :class:`Mean`). Nothing waits for
    the device before the last batch is done. Afterwards the learner is in training mode.

    Args:
        learner: a :class:`Learner <functopt.training.Learner>` or
            :class:`PureLearner <functopt.training.PureLearner>`.
        batches: what it can predict for.
        metrics: as for :func:`fit <functopt.training.fit>`.
        between: called before every batch.

    Returns:
        ``"valid_loss"`` and the metrics by name.

    Raises:
        ValueError: there are no batches.
    """
    named = {"valid_loss": Mean(learner.loss_of), **as_metrics(metrics)}
    for metric in named.values():
        metric.reset()
    learner.train(False)
    try:
        for batch in batches:
            between()
            predictions, target = learner.predict(batch)
            for metric in named.values():
                metric.update(predictions, target)
    finally:
        learner.train(True)
    return dict(zip(named, to_floats([metric.value() for metric in named.values()]), strict=True))


def to_floats(values: Sequence[Any]) -> list[float]:
    """Return numbers and 0-d tensors as numbers, brought over from their device together."""
    tensors = [_wide(value).reshape(()) for value in values if isinstance(value, Tensor)]
    device = tensors[0].device if tensors else None
    brought = iter(torch.stack([t.to(device) for t in tensors]).tolist() if tensors else [])
    return [next(brought) if isinstance(value, Tensor) else float(value) for value in values]


def _examples(target: Any) -> int:
    for leaf in optree.tree_leaves(target):
        if isinstance(leaf, Tensor) and leaf.ndim:
            return len(leaf)
    raise ValueError("metrics: the target has no dimension of examples, so batches cannot be weighed")


def _wide(value: Tensor) -> Tensor:
    return value.float() if value.device.type == "mps" else value.double()  # which has no float64


def _name(metric: Any) -> str:
    return getattr(metric, "__name__", type(metric).__name__)
