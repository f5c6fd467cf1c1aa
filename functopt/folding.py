"""Several operations of a tape as one that torch has for them, which goes over memory once."""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["FOLDED", "Noted", "fold"]


class Noted(NamedTuple):
    """An operation that ran: the numbers of its arguments and of its result."""

    func: Any
    args: tuple[int, ...]
    kwargs: dict[str, Any]
    result: int


_aten = torch.ops.aten
_ADD, _MUL, _DIV = _aten.add.Tensor, _aten.mul.Tensor, _aten.div.Tensor
_SUMS = {_ADD: 1, _aten.sub.Tensor: -1}
_PRODUCTS = {_MUL, _aten.mul.Scalar}
_ADDED = {_MUL: _aten.addcmul.default, _DIV: _aten.addcdiv.default}
_EXACT = {torch.float32, torch.float64}  # a product that is not rounded to bfloat16 would be another one


def _add_scaled(y: Tensor, x: Tensor, factor: float, *, out: Tensor) -> Tensor:
    return torch.add(y, x, alpha=factor, out=out)


def _add_product(y: Tensor, a: Tensor, b: Tensor, factor: float, *, out: Tensor) -> Tensor:
    return torch.addcmul(y, a, b, value=factor, out=out)


def _add_quotient(y: Tensor, a: Tensor, b: Tensor, factor: float, *, out: Tensor) -> Tensor:
    return torch.addcdiv(y, a, b, value=factor, out=out)


FOLDED = {
    (_ADD, 3): _add_scaled,
    (_aten.addcmul.default, 4): _add_product,
    (_aten.addcdiv.default, 4): _add_quotient,
}
"""By function and how many arguments it has, its last one a number: what is called instead of the function."""

Number = Callable[[Callable[..., float], Sequence[int]], int]


def fold(ops: Sequence[Noted], values: Sequence[Any], outputs: Sequence[int], number: Number) -> list[Noted]:
    """Make one operation of some that follow each other, where only the last result is used.

    - ``y + c x`` with a number ``c``: ``add(y, x, alpha=c)``
    - ``y + c (a b)`` and ``y + c (a / b)``: ``addcmul`` and ``addcdiv``
    - ``y + c (a / b + d y)``, as a step with decoupled weight decay is: ``addcdiv`` to ``(1 + c d) y``

    Results change by a rounding error. What is written to in place is left alone.

    Args:
        ops: the operations, in the order in which they run.
        values: by their numbers, what the operations read and what they gave.
        outputs: the numbers of results that are wanted.
        number: gives the place of a number that is computed before from what is at other places.
    """
    return _Folding(ops, values, outputs, number).kept


class _Folding:
    def __init__(self, ops: Sequence[Noted], values: Sequence[Any], outputs: Sequence[int], number: Number) -> None:
        self.values, self.number = values, number
        self.changed = {op.result for op in ops if op.result in op.args}
        uses = collections.Counter([i for op in ops for i in op.args] + [*outputs])
        self.once = {op.result: op for op in ops if uses[op.result] == 1 and op.result not in self.changed}
        self.kept: list[Noted] = []
        for op in ops:
            if op.result not in self.changed:
                op = self._with_factor(op)
                op = self._of_product(self._with_decay(op))
            self.kept.append(op)

    def _with_factor(self, op: Noted) -> Noted:
        """Turn ``y + c x`` into one operation."""
        sign = _SUMS.get(op.func, 0) if not op.kwargs else 0
        for y, product in (op.args, op.args[::-1])[: 2 if sign > 0 else 1] if sign else ():
            x, factor = self._factors(product) or (-1, -1)
            if x >= 0 and self._alike(x, op.result) and self._dtype(y) == self._dtype(x):
                self._drop(product)
                return self._replace(op, _ADD, y, x, self.number(lambda c: sign * float(c), [factor]))
        return op

    def _with_decay(self, op: Noted) -> Noted:
        """Turn ``y + c (a / b + d y)`` into ``(1 + c d) y + c (a / b)``, which becomes one operation less."""
        y, inner, factor = self._scaled(op) or (-1, -1, None)
        first = self._scaled(self.once[inner]) if inner in self.once else None
        if first is None or first[1] != y or first[0] not in self.once or self._added(first[0]) is None:
            return op
        quotient, _, decay = first
        grown = self.number(lambda c, d: 1.0 + c * d, [self._place(factor), self._place(decay)])
        at = next(i for i, other in enumerate(self.kept) if other.result == inner)
        self.kept[at] = self._replace(self.kept[at], _MUL, y, grown)
        return self._replace(op, _ADD, inner, quotient, self._place(factor))

    def _of_product(self, op: Noted) -> Noted:
        """Turn ``y + c (a b)`` and ``y + c (a / b)`` into one operation."""
        terms = self._scaled(op)
        plain = op.func is _ADD and len(op.args) == 2 and not op.kwargs
        if terms is None:
            return op
        first, second, factor = terms
        for y, product in ((first, second), (second, first))[: 2 if plain else 1]:
            added = self._added(product)
            if added is not None and y != product:
                self._drop(product)
                return self._replace(op, added, y, *self.once[product].args, self._place(factor))
        return op

    def _scaled(self, op: Noted) -> tuple[int, int, int | float] | None:
        """Return ``y``, ``x`` and ``c``, a place or a number of Python's, of ``y + c x``; all are slices."""
        if op.func not in _SUMS or op.result in self.changed or {*op.kwargs} - {"alpha"}:
            return None
        y, x, *factor = op.args
        if not (self._alike(y, op.result) and self._alike(x, op.result)):
            return None
        return (y, x, factor[0]) if factor else (y, x, float(_SUMS[op.func] * op.kwargs.get("alpha", 1)))

    def _place(self, factor: int | float | None) -> int:
        """Return the place of a factor; a place is an int, a number of Python's a float."""
        return factor if isinstance(factor, int) else self.number(lambda: factor or 0.0, [])

    def _added(self, product: int) -> Any:
        """Return the function that adds a product or quotient of two slices, if it is that and not used elsewhere."""
        op = self.once.get(product)
        if op is None or op.kwargs or not all(self._alike(i, product) for i in op.args):
            return None
        return _ADDED.get(op.func)

    def _factors(self, product: int) -> tuple[int, int] | None:
        """Return the slice and the number of which a value is the product, if it is that and the number is at hand."""
        op = self.once.get(product)
        if op is None or op.func not in _PRODUCTS or op.kwargs:
            return None
        for x, factor in (op.args, op.args[::-1]):
            value = self._value(factor)
            if isinstance(value, Tensor):  # neither fake nor on a GPU, whose numbers one has to wait for
                scalar = type(value) is Tensor and value.ndim == 0 and value.device.type == "cpu"
            else:
                scalar = isinstance(value, (float, int)) and not isinstance(value, bool)
            if scalar and getattr(self._value(x), "ndim", 0):
                return x, factor
        return None

    def _alike(self, i: int, j: int) -> bool:
        """Tell whether a value is a slice that nothing is written to, like another, in full precision."""
        value, other = self._value(i), self._value(j)
        if not (isinstance(value, Tensor) and isinstance(other, Tensor) and value.ndim > 0 and i not in self.changed):
            return False
        return value.shape == other.shape and value.dtype == other.dtype and value.dtype in _EXACT

    def _dtype(self, i: int) -> torch.dtype | None:
        return getattr(self._value(i), "dtype", None)

    def _value(self, i: int) -> Any:
        return self.values[i] if i < len(self.values) else None  # a number that is not computed yet

    def _drop(self, result: int) -> None:
        self.kept = [op for op in self.kept if op.result != result]

    def _replace(self, op: Noted, func: Any, *args: int) -> Noted:
        op = op._replace(func=func, args=args, kwargs={})
        if op.result in self.once:
            self.once[op.result] = op
        return op
