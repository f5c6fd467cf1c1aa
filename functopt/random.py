"""Random numbers as a pure function of a seed, the step and the place: counter-based, made of tensor operations.

Nothing is drawn from a generator with a state, so a number depends on its seed, step, stream (which leaf), salt (what
for) and position in the leaf, and on nothing else: it is the same eager, compiled and under ``vmap``, where each member
may have its own seed, and on every device (normal numbers up to the rounding of a logarithm and a cosine).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from functopt.dimensions import spread_like
from functopt.numerics import accumulator_dtype
from functopt.tree import Tree, map

__all__ = ["bits", "normal", "normal_like", "philox", "rademacher", "rademacher_like", "uniform", "uniform_like"]

Word = Any
"""Some bits of an integer: a number, or an int64 tensor."""

_MASK = 0xFFFFFFFF


def philox(counter: tuple[Word, Word, Word, Word], key: tuple[Word, Word]) -> tuple[Word, Word, Word, Word]:
    """Return four random words of 32 bits for a counter of four and a key of two: Philox-4x32-10.

    Salmon, Moraes, Dror & Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3" (2011). Words are kept in int64; the
    product of two takes all 64 bits, the sign too, and gives its upper word to a shift and a mask all the same.
    """
    a, b, c, d = counter
    k, j = key
    for _ in range(10):
        p, q = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = ((q >> 32) & _MASK) ^ b ^ k, q & _MASK, ((p >> 32) & _MASK) ^ d ^ j, p & _MASK
        k, j = (k + 0x9E3779B9) & _MASK, (j + 0xBB67AE85) & _MASK
    return a, b, c, d


def _key(seed: float | Tensor) -> tuple[Word, Word]:
    if isinstance(seed, float) and not seed.is_integer():
        raise ValueError(f"random: a seed must be a whole number, got {seed!r}")
    number = seed.detach().to(torch.int64) if isinstance(seed, Tensor) else int(seed)
    return number & _MASK, (number >> 32) & _MASK


def _number(salt: str) -> int:
    """Return a word for a text: FNV-1a, which torch.compile can trace."""
    word = 0x811C9DC5
    for character in salt:
        word = ((word ^ ord(character)) * 0x01000193) & _MASK
    return word


def _words(
    count: int, per_number: int, device: torch.device, seed: float | Tensor, step: int | Tensor, stream: int, salt: str
) -> list[Tensor]:
    """Return the words for ``count`` numbers, in groups: four if a number takes one word, two pairs if it takes two."""
    blocks = torch.arange(-(-count * per_number // 4), device=device)
    # all four words of the counter are tensors: a plain number would overflow where a tensor wraps
    rest = [blocks.new_full((), word & _MASK) for word in (stream, _number(salt))]
    at = step.to(torch.int64) & _MASK if isinstance(step, Tensor) else blocks.new_full((), step & _MASK)
    return list(philox((blocks, rest[0], at, rest[1]), _key(seed)))


def _arrange(parts: list[Tensor], like: Tensor) -> Tensor:
    """Put numbers in the order of their positions into the shape of ``like``, and spread them as it is spread."""
    # every process has made all of it, so that nothing need be sent
    return spread_like(torch.stack(parts, -1).flatten()[: like.numel()].reshape(like.shape), like)


def bits(like: Tensor, seed: float | Tensor, count: int | Tensor = 0, stream: int = 0, *, salt: str = "") -> Tensor:
    """Return a random word of 32 bits for every entry of ``like``, in int64.

    Args:
        like: gives shape and device.
        seed: a whole number of up to 64 bits, or a 0-d tensor of one; under ``vmap`` each member may have its own.
        count: the number of the step.
        stream: which of several tensors it is.
        salt: what the numbers are for, so that two uses of one seed are independent.
    """
    return _arrange(_words(like.numel(), 1, like.device, seed, count, stream, salt), like)


def uniform(like: Tensor, seed: float | Tensor, count: int | Tensor = 0, stream: int = 0, *, salt: str = "") -> Tensor:
    """Return numbers from [0, 1) in the dtype of ``like``: of 53 bits in float64, 24 in float32, 8 in bfloat16.

    The arguments are those of :func:`bits`.
    """
    if like.dtype == torch.float64:
        a, b, c, d = _words(like.numel(), 2, like.device, seed, count, stream, salt)
        return _arrange([_fraction53(a, b), _fraction53(c, d)], like)
    digits = round(1 - math.log2(torch.finfo(like.dtype).eps))  # with more, some would be rounded up to 1
    words = _words(like.numel(), 1, like.device, seed, count, stream, salt)
    return _arrange([(word >> (32 - digits)).to(like.dtype) * 2.0**-digits for word in words], like)


def _fraction53(high: Tensor, low: Tensor) -> Tensor:
    return ((high << 21) | (low >> 11)).to(torch.float64) * 2.0**-53


def normal(like: Tensor, seed: float | Tensor, count: int | Tensor = 0, stream: int = 0, *, salt: str = "") -> Tensor:
    """Return standard normal numbers in the dtype of ``like``, made in float32 at least by Box and Muller's method.

    The arguments are those of :func:`bits`.
    """
    dtype = accumulator_dtype(like.dtype)
    words = _words(like.numel(), dtype.itemsize // 4, like.device, seed, count, stream, salt)
    if dtype == torch.float64:
        pairs = [(_fraction53(*words[:2]) + 2.0**-54, _fraction53(*words[2:]))]
    else:
        # all 32 bits of the radius, whose logarithm makes the tails; 1 half above 0, where it is finite
        pairs = [((a.to(dtype) + 0.5) * 2.0**-32, b.to(dtype) * 2.0**-32) for a, b in (words[:2], words[2:])]
    parts = []
    for u, angle in pairs:
        radius, angle = (-2 * u.log()).clamp_min(0).sqrt(), 2 * math.pi * angle
        parts += [(radius * angle.cos()).to(like.dtype), (radius * angle.sin()).to(like.dtype)]
    return _arrange(parts, like)


def rademacher(
    like: Tensor, seed: float | Tensor, count: int | Tensor = 0, stream: int = 0, *, salt: str = ""
) -> Tensor:
    """Return -1 or 1, with equal chances, in the dtype of ``like``. The arguments are those of :func:`bits`."""
    words = _words(like.numel(), 1, like.device, seed, count, stream, salt)
    return _arrange([(1 - 2 * (word & 1)).to(like.dtype) for word in words], like)


def _of_tree(draw: Callable[..., Tensor], tree: Tree, seed: Tree, count: int | Tensor, salt: str) -> Tree:
    before: list[Tensor] = []  # leaves without entries do not count: they are no reason for other numbers elsewhere

    def of_leaf(leaf: Tensor, own: float | Tensor) -> Tensor:
        out = draw(leaf, own, count, len(before), salt=salt)
        before.extend([leaf] * (leaf.numel() > 0))
        return out

    return map(of_leaf, tree, seed)


def normal_like(tree: Tree, seed: Tree, count: int | Tensor = 0, *, salt: str = "") -> Tree:
    """Return standard normal numbers like a tree of tensors, whose leaves have the streams 0, 1, 2, ... in their order.

    The arguments are those of :func:`bits`; the seed may be a prefix tree of seeds.
    """
    return _of_tree(normal, tree, seed, count, salt)


def uniform_like(tree: Tree, seed: Tree, count: int | Tensor = 0, *, salt: str = "") -> Tree:
    """Return numbers from [0, 1) like a tree of tensors, each leaf with a stream of its own.

    The arguments are those of :func:`normal_like`.
    """
    return _of_tree(uniform, tree, seed, count, salt)


def rademacher_like(tree: Tree, seed: Tree, count: int | Tensor = 0, *, salt: str = "") -> Tree:
    """Return -1 and 1 like a tree of tensors, each leaf with a stream of its own.

    The arguments are those of :func:`normal_like`.
    """
    return _of_tree(rademacher, tree, seed, count, salt)
