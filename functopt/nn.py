"""Convolutions, poolings, softmax and GELU that stay fast when every member of a sweep has weights of its own."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn import functional as F
from torch.nn.modules.lazy import LazyModuleMixin
from torch.overrides import TorchFunctionMode

__all__ = ["batched"]

Fn = TypeVar("Fn", bound=Callable[..., Any])


def batched(fn: Fn, *, limit: int = 2**18) -> Fn:
    """Return a model, or a function, that computes the same with convolutions that batch well over members.

    Under ``torch.func.vmap`` over the weights torch makes of a convolution one with a group for every member, which is
    slow on a CPU. Here a convolution is a matrix product: the input, shifted once for every place of the kernel, is
    stacked to the columns of one matrix, ::

        columns[(c, i, j), (h, w, b)] = padded[b, c, h * stride + i * dilation, w * stride + j * dilation]
        out[o, (h, w, b)] = sum over k of weight[o, k] * columns[k, (h, w, b)] + bias[o]

    with the examples of the batch innermost in memory, so that padding, shifts, activations and pooling run over whole
    vectors; for all members it is one batched matrix product. It is meant for steps that
    are vmapped and compiled: ``torch.compile`` fuses shifts with the activations and pooling before them.

    What is computed so: convolutions of one to three dimensions in any form, max pooling without padding, ``ceil_mode``
    or indices, and adaptive average pooling to one value. Where it is compiled, GELU in its tanh form is a product with
    a sigmoid, and softmax on a CPU exponentials times one reciprocal: the same functions, and faster. Everything else
    is left as it is. Values and gradients are torch's to rounding: for max pooling that of the largest magnitude in a
    window, and two infinities in one give NaN.

    Args:
        fn: a module or a function. A module is not changed.
        limit: the largest matrix of columns of one member in bytes; a convolution that needs a larger one stays with
            torch. What counts is whether the columns of all members fit in the processor's cache: the default suits
            64 members; for fewer at a time it may be larger, ``2**24 // members``.

    Returns:
        For a module: one with the same parameters, buffers and submodules (the very same objects, under the same names,
        so that ``torch.func.functional_call`` takes the same dictionary), of a subclass of its class; only calling it
        is different. For a function: a function of the same arguments.

    Raises:
        ValueError: the model has lazy modules that have not seen an input.

    >>> fast = batched(model)
    >>> loss_fn = lambda params, batch: F.cross_entropy(functional_call(fast, params, batch[0]), batch[1])
    """
    return _view(fn, limit) if isinstance(fn, Module) else _in_mode(fn, limit)


def _view(model: Any, limit: int) -> Any:
    """Return the same module, of a subclass that computes within the mode."""
    for name, module in model.named_modules():
        if isinstance(module, LazyModuleMixin):  # torch changes its class once it has seen an input
            raise ValueError(
                f"batched: {name or 'the model'!r} is a {type(module).__name__} whose parameters have no shape yet; "
                "call the model on an input first"
            )
    kind = type(model)
    twin = object.__new__(type(kind.__name__, (kind,), {"forward": _in_mode(kind.forward, limit)}))
    twin.__dict__ = dict(model.__dict__)  # the dictionaries of parameters and submodules are shared
    return twin


def _in_mode(fn: Any, limit: int) -> Any:
    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        with _Batched(limit):
            return fn(*args, **kwargs)

    return call


class _Batched(TorchFunctionMode):
    """Computes what :func:`batched` names in its own way while it is on."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = _LAYERS[func](self.limit, *args, **(kwargs or {})) if func in _LAYERS else None
        return func(*args, **(kwargs or {})) if out is None else out


def _convolution(
    dims: int,
    limit: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor | None:
    """Return the convolution, or nothing where it is for torch: large columns, or something to object."""
    kernel, stride, dilation = weight.shape[2:], _each(stride, dims), _each(dilation, dims)
    if input.ndim == dims + 1:
        out = _convolution(dims, limit, input[None], weight, bias, stride, padding, dilation, groups)
        return None if out is None else out[0]
    pads = _pads(padding, kernel, dilation)
    if input.ndim != dims + 2 or input.shape[1] != weight.shape[1] * groups or (padding == "same" and max(stride) > 1):
        return None
    sizes = _sizes(input.shape[2:], pads, kernel, stride, dilation)
    places = math.prod(sizes) * len(input)
    columns_bytes = input.shape[1] * math.prod(kernel) * places * input.element_size()
    if min(sizes) < 1 or input.numel() == 0 or columns_bytes > limit:
        return None
    shifts = [*_shifts(_batch_last(input, pads), sizes, kernel, stride, dilation)]
    columns = torch.stack(shifts, 1).reshape(groups, -1, places)
    out = weight.reshape(groups, len(weight) // groups, -1) @ columns
    out = out.reshape(len(weight), places)
    if bias is not None:
        out = out + bias[:, None]
    return out.reshape(len(weight), *sizes, len(input)).movedim(-1, 0)


def _max_pooling(
    dims: int,
    limit: int,
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | None:
    """Return the largest of each window; the gradient goes to the first of equals, and NaN wins, as in torch.

    ``torch.where`` would be exact but stores its masks: the step of a pooled network takes about 1.4 times as long.
    """
    if ceil_mode or return_indices or input.ndim != dims + 2 or any(_each(padding, dims)):
        return None
    kernel, dilation = _each(kernel_size, dims), _each(dilation, dims)
    stride = kernel if stride in (None, (), []) else _each(stride, dims)
    sizes = _sizes(input.shape[2:], [(0, 0)] * dims, kernel, stride, dilation)
    if min(sizes) < 1:
        return None
    return _largest([*_shifts(input.movedim(0, -1), sizes, kernel, stride, dilation)]).movedim(-1, 0)


def _largest(values: Sequence[Tensor]) -> Tensor:
    if len(values) == 1:
        return values[0]
    half = len(values) // 2
    first, then = _largest(values[:half]), _largest(values[half:])
    return first + torch.relu(then - first)


def _mean_pooling(dims: int, limit: int, input: Tensor, output_size: Any) -> Tensor | None:
    """Return the mean of each channel: torch's own loops over the members."""
    if input.ndim not in (dims + 1, dims + 2) or _each(output_size, dims) != (1,) * dims:
        return None
    return input.mean(tuple(range(-dims, 0)), keepdim=True)


def _gelu(limit: int, input: Tensor, approximate: str = "none") -> Tensor | None:
    """Return GELU in its tanh form as ``x σ(2 √(2/π) (x + 0.044715 x³))``, for ``(1 + tanh u) / 2 = σ(2u)``.

    In the compiler's vector loops a tanh takes several times as long as an exponential.
    """
    if approximate != "tanh" or not torch.compiler.is_compiling() or not input.is_floating_point():
        return None
    return input * torch.sigmoid(math.sqrt(8 / math.pi) * (input + 0.044715 * input * input * input))


def _softmax(limit: int, input: Tensor, dim: int | None = None, *rest: Any, **options: Any) -> Tensor | None:
    """Return ``exp(x - max x) / Σ exp(x - max x)``, with one division for a row.

    The maximum is added with its sign changed because inductor takes ``x c - max(x c)``, which attention has, for a
    pattern of its own that looks for two maxima and whether all is finite: twice the time for short rows.
    """
    if not isinstance(dim, int) or any(isinstance(value, torch.dtype | Tensor) for value in (*rest, *options.values())):
        return None
    exact = input.dtype in (torch.float32, torch.float64) and input.device.type == "cpu"
    if not exact or not input.ndim or not input.numel() or not torch.compiler.is_compiling():
        return None
    e = torch.exp(input + -input.amax(dim, keepdim=True).detach())
    return e * e.sum(dim, keepdim=True).reciprocal()


_LAYERS: dict[Any, Callable[..., Tensor | None]] = (
    {F.gelu: _gelu}
    | dict.fromkeys((F.softmax, torch.softmax, Tensor.softmax), _softmax)
    | {
        getattr(module, f"{name}{dims}d"): functools.partial(layer, dims)
        for name, layer in {"conv": _convolution, "max_pool": _max_pooling, "adaptive_avg_pool": _mean_pooling}.items()
        for dims in (1, 2, 3)
        for module in (F, torch)  # F.max_pool2d is seen as itself eagerly, and as torch.max_pool2d by the compiler
        if hasattr(module, f"{name}{dims}d")
    }
)


def _each(value: Any, dims: int) -> tuple[Any, ...]:
    """Return a setting for each dimension."""
    values = tuple(value) if isinstance(value, Sequence) else (value,)
    return values * dims if len(values) == 1 else values


def _pads(padding: Any, kernel: Sequence[int], dilation: Sequence[int]) -> list[tuple[int, int]]:
    """Return how much is added before and after, for each dimension."""
    if padding == "same":
        spans = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        return [(span // 2, span - span // 2) for span in spans]
    return [(pad, pad) for pad in _each(0 if padding == "valid" else padding, len(kernel))]


def _sizes(image: Any, pads: Any, kernel: Any, stride: Any, dilation: Any) -> list[int]:
    along = zip(image, pads, kernel, stride, dilation, strict=True)
    return [(n + sum(pad) - d * (k - 1) - 1) // s + 1 for n, pad, k, s, d in along]


def _batch_last(input: Tensor, pads: Sequence[tuple[int, int]]) -> Tensor:
    flat = [0, 0, *itertools.chain(*reversed(pads))]  # F.pad counts from the last dimension, here the examples
    return F.pad(input.movedim(0, -1), flat) if any(flat) else input.movedim(0, -1)


def _shifts(padded: Tensor, sizes: Any, kernel: Any, stride: Any, dilation: Any) -> Iterator[Tensor]:
    """Yield the input seen by each place of the kernel: channels, an entry for each output, examples."""
    for place in itertools.product(*map(range, kernel)):
        along = zip(place, sizes, stride, dilation, strict=True)
        windows = [slice(i * d, i * d + s * (n - 1) + 1, s) for i, n, s, d in along]
        yield padded[(slice(None), *windows)]
