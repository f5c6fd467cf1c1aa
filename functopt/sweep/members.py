"""The members of a sweep and the compiled blocks of steps that train them."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from functopt import tree
from functopt.base import Transform
from functopt.compile import compile as compile_block
from functopt.direct import Direct
from functopt.nn import batched
from functopt.sweep.batches import pick
from functopt.tree import Tree

__all__ = ["NEVER", "Block", "Members", "attention", "takes_hypers"]

NEVER = torch.iinfo(torch.int64).max  # the step at which a member stops that goes on


class Trained(NamedTuple):
    """What a step changes; every leaf has a leading axis of members."""

    params: Tree
    state: Tree


class Block(NamedTuple):
    """What decides about the program of a block of steps."""

    loss_fn: Callable[..., Any]
    tx: Transform
    randomness: str
    compiled: bool
    size: int
    gathers: bool
    columns: int  # bytes, of convolutions as matrix products; 0 for the grouped ones that vmap makes


class Members:
    """Members in training.

    A step may be kept only if all that it writes is finite. To look before writing means to compute the update twice,
    which took as long as the rest of the step. So compiled steps write at once, into the members' own memory, and a few
    of them make a transaction: if a member's loss or parameters are found not to be finite, that member goes back to
    the copy from before and takes the same steps once more, one at a time, up to the one that fails. The others do not
    move meanwhile, and all of it is the same program, so that no member gets other numbers than it would have had
    without the accident. This asks the device once for each call of :meth:`advance`. Uncompiled steps look before they
    write, and never ask.
    """

    def __init__(self, params: Tree, hypers: dict[str, Any], block: Block) -> None:
        like = tree.leaves(params)[0]
        self.trained = Trained(params, tree.owned(torch.func.vmap(block.tx.init)(params), params))
        self.stop = torch.full((len(like),), NEVER, device=like.device)
        self.done = 0
        self._programs: dict[Any, Callable[..., Any] | None] = {}  # of blocks that are known
        self._hypers, self._block = hypers, block
        self._function, self._direct = _function(block)
        self._copy = [torch.empty_like(leaf) for leaf in tree.leaves(self.trained)] if block.compiled else []

    @property
    def alive(self) -> Tensor:
        """Which members go on."""
        return self.stop == NEVER

    def advance(self, blocks: Sequence[Any], count: int) -> Tensor:
        """Take ``count`` steps, the last block may hold more, and return their losses, one row for each."""
        before = after = self.stop.clamp(max=self.done + count)
        draws = self._draws()
        self._keep()
        rows = []
        for i, block in enumerate(blocks):
            after, losses = self._run(block, self.done + i * self._block.size, after)
            rows.append(losses)
        losses = torch.cat(rows)[:count]
        if self._copy:
            stopped = after < before
            if bool(stopped.any() | ~self._looks_finite()) and bool((failed := stopped | ~self._all_finite()).any()):
                after = self._again(blocks, draws, before, failed)
                steps = torch.arange(self.done, self.done + count, device=after.device).unsqueeze(1)
                losses = torch.where(failed & (steps > after), torch.nan, losses)
        self.stop = torch.where(after < before, after, self.stop)
        self.done += count
        return losses

    def _run(self, block: Any, step: int, stop: Tensor) -> tuple[Tensor, Tensor]:
        at, leaves = torch.full((), step, device=stop.device), tree.leaves(block)
        kind = _kind(leaves)
        program = self._programs.get(kind)
        if program is not None:
            stop, losses = program([*leaves, at, stop])
            return stop, losses
        with _trusting() if kind in self._programs else contextlib.nullcontext():
            self.trained, after, losses = self._function(self.trained, self._hypers, block, at, stop)
        if self._direct is not None and kind not in self._programs:
            fixed: Any = (*self.trained, self._hypers)
            self._programs[kind] = self._direct.again(optree.tree_leaves(fixed), [*leaves, at, stop], [after, losses])
        return after, losses

    def _again(self, blocks: Sequence[Any], draws: Tensor | None, stop: Tensor, failed: Tensor) -> Tensor:
        """Take the failed members back and through the same steps one by one; return where each stops."""
        self._restore(failed)
        with torch.random.fork_rng(devices=[stop.device] if stop.is_cuda else []):
            for i, block in enumerate(blocks):
                first = self.done + i * self._block.size
                self._keep()
                for step in range(first, first + self._block.size):
                    moving = failed & (step < stop)
                    after = self._rerun(block, first, moving, step + 1, draws)
                    fails = moving & ((after <= step) | ~self._all_finite())
                    stop = torch.where(fails, step, stop)
                    self._rerun(block, first, fails, step, draws)
                draws = self._draws()
        return stop

    def _rerun(self, block: Any, first: int, members: Tensor, stop: int, draws: Tensor | None) -> Tensor:
        """Take some members through a block from its start, with the same random numbers, up to a step."""
        self._draw(draws)
        self._restore(members)
        return self._run(block, first, torch.where(members, stop, 0))[0]

    def _looks_finite(self) -> Tensor:
        """Tell quickly whether all parameters of all members are finite; no may be wrong, if a sum overflows."""
        return torch.stack([leaf.sum() for leaf in tree.leaves(self.trained.params)]).isfinite().all()

    def _all_finite(self) -> Tensor:
        return torch.func.vmap(_finite)(self.trained.params)

    def _keep(self) -> None:
        if self._copy:
            torch._foreach_copy_(self._copy, tree.leaves(self.trained))  # pyright: ignore[reportPrivateImportUsage]

    def _restore(self, members: Tensor) -> None:
        for leaf, kept in zip(tree.leaves(self.trained), self._copy, strict=True):
            leaf.copy_(torch.where(members.view(-1, *[1] * (leaf.ndim - 1)), kept, leaf))

    def _draws(self) -> Tensor | None:
        """Return where the random numbers stand, if the loss uses them."""
        if self._block.randomness == "error":
            return None
        return torch.cuda.get_rng_state(self.stop.device) if self.stop.is_cuda else torch.get_rng_state()

    def _draw(self, draws: Tensor | None) -> None:
        """Go back to where the random numbers stood."""
        if draws is not None and self.stop.is_cuda:
            torch.cuda.set_rng_state(draws, self.stop.device)
        elif draws is not None:
            torch.set_rng_state(draws)


def _trusting() -> contextlib.AbstractContextManager[Any]:
    """Spare the compiler the check of what it is given: the same members and hypers, and batches of a known kind."""
    return torch.compiler.set_stance("default", skip_guard_eval_unsafe=True)


def _kind(leaves: Sequence[Any]) -> Any:
    """Return what the compiler tells batches apart by: shapes, strides, types, numbers, and what is in there twice."""
    ids = [id(leaf) for leaf in leaves]
    facts = [(x.shape, x.stride(), x.dtype, x.requires_grad) if isinstance(x, Tensor) else x for x in leaves]
    return tuple(facts), tuple(ids.index(i) for i in ids)


def attention(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Compute attention in a way that vmap knows."""
    # torch 2.14 has no batching rule for the CPU's fused attention, and would run it member by member
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else contextlib.nullcontext()


@functools.lru_cache(maxsize=8)
def _function(block: Block) -> tuple[Callable[..., tuple[Trained, Tensor, Tensor]], Direct | None]:
    """Return the block of all members, and what can call its graph by itself if it is compiled.

    They are the same for equal arguments, so that a second sweep compiles nothing.
    """
    loss_fn, tx = block.loss_fn, block.tx
    with_hypers = takes_hypers(loss_fn)
    of_member = batched(loss_fn, limit=block.columns) if block.columns else loss_fn

    def member(params: Tree, state: Tree, moves: Tensor, hypers: dict[str, Any], batch: Any) -> tuple[Any, ...]:
        arguments = (batch, hypers) if with_hypers else (batch,)
        grads, loss = torch.func.grad_and_value(of_member)(params, *arguments)
        own = {name: value for name, value in hypers.items() if name in tx.hypers}
        extras = {"value": loss, "value_fn": lambda at: of_member(at, *arguments)}
        new_params, new_state = tx.update(grads, state, params, own, **extras)
        finite = _finite(loss if block.compiled else (loss, new_params))
        moves = moves if block.compiled else moves & finite
        keep = lambda new, old: torch.where(moves, new, old)
        return tree.map(keep, new_params, params), tree.map(keep, new_state, state), finite, loss

    def steps(
        trained: Trained, hypers: Any, batches: Any, step: Tensor, stop: Tensor
    ) -> tuple[Trained, Tensor, Tensor]:
        mapped = torch.func.vmap(member, in_dims=(0, 0, 0, 0, None), randomness=block.randomness)
        rows = []
        for i in range(block.size):
            moves = step + i < stop
            params, state, finite, losses = mapped(*trained, moves, hypers, pick(batches, i, block.gathers))
            trained = Trained(params, state)
            stop = torch.where(moves & ~finite, step + i, stop)
            rows.append(torch.where(moves, losses, torch.nan))
        return trained, stop, torch.stack(rows)

    if not block.compiled:
        return steps, None
    direct = Direct()
    return compile_block(steps, donate=(0,), backend=direct), direct


def _finite(values: Tree) -> Tensor:
    # the largest size is finite just when all are, for a maximum takes NaN along
    sizes = [leaf.abs().amax() for leaf in tree.leaves(values) if leaf.numel()]
    return functools.reduce(torch.maximum, sizes) < torch.inf


def takes_hypers(loss_fn: Callable[..., Any]) -> bool:
    """Tell whether a loss has a third argument."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(loss_fn).parameters.values()
    named = sum(p.kind in kinds and (p.default is p.empty or p.name == "hypers") for p in parameters)
    return named >= 3 or any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters)
