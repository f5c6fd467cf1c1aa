"""The sweep: one vmapped, compiled, donated step that trains every member."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import optree
import torch
from torch import Tensor

from functopt import tree
from functopt.allocator import keeping_all
from functopt.base import Transform
from functopt.hypers import unknown_hyper
from functopt.numerics import accumulator_dtype
from functopt.sweep import memory
from functopt.sweep.batches import Batches, Reader
from functopt.sweep.evaluation import Evaluation, join
from functopt.sweep.members import NEVER, Block, Members, attention, takes_hypers
from functopt.sweep.progress import Progress
from functopt.sweep.result import SweepResult
from functopt.sweep.space import draw, log_axes
from functopt.sweep.tune import COLUMNS, Plan, alternatives, fastest, has_convolution, seconds_each, using_threads
from functopt.tree import Tree

__all__ = ["sweep"]

AT_ONCE = 16  # steps, about, from one look at the members to the next


def sweep(
    loss_fn: Callable[..., Tensor],
    params: Tree | Callable[[int], Tree],
    tx: Transform,
    space: Mapping[str, Any],
    batches: Batches | Iterable[Any],
    *,
    members: int | None = None,
    seed: int = 0,
    steps: int | None = None,
    record_every: int = 1,
    eval_fn: Callable[[Tree], Any] | None = None,
    eval_every: int | None = None,
    metric: str | None = None,
    mode: str | None = None,
    stacked: bool = False,
    chunk: int | None = None,
    compile: bool = True,
    block: int = 1,
    threads: int | None = None,
    tune: bool | Plan = False,
    randomness: str = "error",
    progress: bool | None = None,
) -> SweepResult:
    """Train many configurations at once, in one batched program.

    Every member has its own parameters, optimizer state and hypers; all see the same batches. A step is one
    ``torch.func.vmap`` over the members of loss, gradient and ``tx.update``, compiled, in the members' own memory.

    A member whose loss or parameters stop being finite is frozen where they were last finite, and reported with the
    step at which it happened. It never touches another: their results are bit for bit what they would have been.

    How the kinds of a space go together: every *grid* is combined with every other, so that their sizes multiply;
    explicit *lists* are read member by member; *draws* (``log_uniform``, ``uniform``, ``choice``) give each member its
    own value. ``members``, the product of the grids and the length of each list must all be the same number; where only
    draws are given, ``members`` says it. A plain number is the same for all. A schedule may hold any of these in its
    settings: ``{"lr": cosine_decay_schedule(log_uniform(1e-4, 1e-1), 1000)}``.

    Args:
        loss_fn: ``(params, batch) -> loss`` or ``(params, batch, hypers) -> loss``, a 0-d tensor, for one member.
            ``hypers`` maps every name of the space to the member's value, so that the loss can use names that the
            optimizer does not have (label smoothing, say).
        params: the initial parameters, shared by all members; or a function from a seed to them, called with
            ``seed``, ``seed + 1``, ... for a start of its own for each member.
        tx: the optimizer. Hypers that the space does not name keep its defaults.
        space: what is swept, by name.
        batches: one batch for each step, trees of tensors of the same shapes (another shape compiles again); or
            :class:`Batches`, which the compiled steps gather themselves.
        members: how many, if the space does not say it.
        seed: of the draws, and of the first member's parameters.
        steps: stop after this many; by default when the batches end.
        record_every: keep the losses of every so many steps. They stay on the device; nothing waits for them.
        eval_fn: ``(params) -> metric``, or a dict of metrics, for one member: what the members are ranked by. Called
            when training ends.
        eval_every: call ``eval_fn`` every so many steps too, and keep each member's best.
        metric: which metric ranks the members; by default the first one. Without ``eval_fn`` it is the mean of the last
            tenth of the recorded losses.
        mode: ``"max"`` or ``"min"``: which metric is better. Needed with ``eval_fn``; losses are minimised.
        stacked: ``params`` already has a leading axis of members.
        chunk: how many members to train at a time, if not all fit into memory; the same for all chunks, whose results
            are put together. With ``randomness="different"`` their random numbers are others than without.
        compile: run compiled, with convolutions in the form of :func:`nn.batched <functopt.nn.batched>` on a CPU where
            that is faster. Eager runs give the same numbers to rounding, sooner for a handful of steps.
        block: how many steps one compiled call takes. More steps make a longer program, which compiles for longer.
        threads: how many threads to compute with, while the sweep runs.
        tune: try out first how many members at a time (where there are many), how many threads and which form of
            convolutions are the fastest, and go on with these: for long sweeps, since each trial compiles. What is
            given as ``chunk`` and ``threads`` stays. What was found is ``plan`` of the result, which may be given here
            to a sweep of the same kind, that then tries nothing.
        randomness: how random operations in the loss behave across members: ``"different"``, ``"same"`` or ``"error"``.
        progress: show steps per second, members alive and the best loss; by default on a terminal only.

    Returns:
        The trained members, see :class:`SweepResult`.

    Raises:
        KeyError: the space names something that neither the optimizer nor the loss has.
        MemoryError: the members do not fit into free memory; the message says which ``chunk`` would.
        ValueError: lengths in the space clash, a value is out of range, there are no batches, or the loss is not 0-d.
    """
    hypers, columns = draw(space, members, seed)
    count = len(next(iter(columns.values()))) if columns else _length(hypers)
    mode = _check_mode(mode, eval_fn)
    for name, value in {
        "record_every": record_every,
        "eval_every": eval_every,
        "steps": steps,
        "chunk": chunk,
        "block": block,
        "threads": threads,
    }.items():
        if value is not None and value < 1:
            raise ValueError(f"sweep: {name} must be at least 1, got {value}")
    first, batches = _peek(batches)
    one = tree.member(_initial(params, count, seed, stacked, [0]), 0)
    like = tree.leaves(one)[0]
    hypers = _map_hypers(lambda value: _to(value, like), hypers)
    loss = _try_loss(hypers, tx, loss_fn, one, first)
    state = tx.init(one)
    with torch.random.fork_rng(devices=[]):
        each = memory.member_bytes(loss, one, state)

    on_cpu = like.device.type == "cpu"
    usual = Plan(count, torch.get_num_threads(), COLUMNS if compile and on_cpu else 0)
    plan = tune if isinstance(tune, Plan) else usual
    plan = plan._replace(chunk=min(chunk or plan.chunk, count), threads=threads or plan.threads)

    def needs(size: int) -> int:
        return each * size + (count * memory.size_of(one, state) if size < count else 0)

    def members_of(plan: Plan, chosen: Tensor) -> Members:
        program = Block(loss_fn, tx, randomness, compile, block, isinstance(batches, Batches), plan.columns)
        own = _map_hypers(lambda value: value[chosen.to(value.device)], hypers)
        return Members(_initial(params, count, seed, stacked, chosen.tolist()), own, program)

    memory.check_fits(needs(plan.chunk), each, count, plan.chunk, like.device)
    began = time.perf_counter()
    with keeping_all() if on_cpu else contextlib.nullcontext(), attention(like.device):
        if tune is True:
            _, trial = Reader(batches if isinstance(batches, Batches) else [first], block).read(1)
            others = alternatives(
                plan,
                columns=bool(plan.columns) and has_convolution(loss, one),
                chunk=chunk is None and on_cpu,
                threads=threads is None and on_cpu,
            )
            with _same_draws(again=True):
                plan = fastest(plan, others, lambda plan: _seconds(plan, members_of, trial, block))
        size = plan.chunk
        # the last chunk is filled up with copies of the last member, so that all chunks run the same program
        chunks = [torch.arange(start, start + size).clamp(max=count - 1) for start in range(0, count, size)]
        if len(chunks) > 1 and not isinstance(batches, (Batches, Sequence)):
            batches = [*itertools.islice(batches, steps)]  # every chunk trains on the same ones
        total = _total(batches, steps)
        bar = Progress(
            None if total is None else total * len(chunks),
            count,
            show=progress,
            note=f"{count} members{f', {size} at a time,' if len(chunks) > 1 else ''} need {memory.human(needs(size))}",
            at_first="compiling" if compile else "",
        )
        parts: list[_Part] = []
        with bar, using_threads(plan.threads):
            for chosen in chunks:
                part = _Part(members_of(plan, chosen), Evaluation(eval_fn, mode, metric, randomness))
                with _same_draws(again=chosen is not chunks[-1]):
                    part.train(Reader(batches, block), steps, record_every, eval_every, bar)
                parts.append(part)
            curves = torch.cat([part.curves() for part in parts], 1)[:, :count].cpu()  # waits for the device
    stop = torch.cat([part.members.stop for part in parts])[:count].cpu()
    trained = tree.map(lambda *leaves: _beside(leaves, count), *(part.members.trained for part in parts))
    evaluation = join([part.evaluation for part in parts], count)
    return SweepResult(
        hypers=columns,
        losses=curves,
        loss_steps=torch.arange(0, parts[0].members.done, record_every),
        diverged_at=torch.where(stop == NEVER, -1, stop),
        metrics=evaluation.final(curves),
        best_metrics=evaluation.best(curves),
        metric=evaluation.ranked_by,
        mode=mode,
        steps=parts[0].members.done,
        seconds=time.perf_counter() - began,
        first_step_seconds=parts[0].first - began,
        memory=needs(size),
        plan=plan,
        log_axes=log_axes(space),
        all_params=trained.params,
        all_states=trained.state,
    )


class _Part:
    """The members of one chunk, what they have been evaluated to, and their losses."""

    def __init__(self, members: Members, evaluation: Evaluation) -> None:
        self.members, self.evaluation = members, evaluation
        self.first = 0.0  # when the first block was done
        self._losses: list[Tensor] = []

    def train(
        self, reader: Reader, steps: int | None, record_every: int, eval_every: int | None, bar: Progress
    ) -> None:
        """Train until the steps are taken or the batches end."""
        members, wanted, count = self.members, 0, 0
        while count == wanted and members.done != steps:
            # the first call is short, for it compiles and its time is reported
            wanted = max(AT_ONCE // reader.size, 1) * reader.size if self.first else reader.size
            wanted = min(wanted, *(bound - members.done for bound in self._bounds(steps, eval_every)), wanted)
            count, blocks = reader.read(wanted)
            if not count:
                break
            offset = -members.done % record_every
            losses = members.advance(blocks, count)
            self._losses.append(losses[offset::record_every])
            self.first = self.first or time.perf_counter()
            if eval_every is not None and members.done % eval_every == 0:
                self.evaluation(members.trained.params, members.done)
            bar.update(count, members.alive, losses[-1])
        if members.done not in self.evaluation.steps[-1:]:
            self.evaluation(members.trained.params, members.done)

    def _bounds(self, steps: int | None, eval_every: int | None) -> Iterator[int]:
        if steps is not None:
            yield steps
        if eval_every is not None:
            yield (self.members.done // eval_every + 1) * eval_every

    def curves(self) -> Tensor:
        """Return the recorded losses."""
        return torch.cat(self._losses)


def _beside(leaves: tuple[Tensor, ...], count: int) -> Tensor:
    return leaves[0] if len(leaves) == 1 else torch.cat(leaves)[:count]


def _peek(batches: Iterable[Any]) -> tuple[Any, Iterable[Any]]:
    """Return the first batch, and the batches as they were."""
    source = iter(batches)
    first = next(source, None)
    if first is None:
        raise ValueError("sweep: there are no batches")
    return first, itertools.chain([first], source) if source is batches else batches


def _total(batches: Iterable[Any], steps: int | None) -> int | None:
    try:
        length = len(batches)  # pyright: ignore[reportArgumentType]
    except TypeError:
        return steps
    return length if steps is None else min(steps, length)


def _seconds(plan: Plan, members_of: Callable[[Plan, Tensor], Members], blocks: Sequence[Any], size: int) -> float:
    """Return the time that one step of one member takes; for ever, if this plan does not work."""
    calls = max(AT_ONCE // size, 1)
    try:
        with using_threads(plan.threads):
            members = members_of(plan, torch.arange(plan.chunk))
            return seconds_each(lambda: members.advance([*blocks] * calls, calls * size), plan.chunk)
    except (MemoryError, RuntimeError):
        return math.inf


@contextlib.contextmanager
def _same_draws(again: bool) -> Iterator[None]:
    """Leave the global random numbers as they were, if they are to be drawn again."""
    with torch.random.fork_rng() if again else contextlib.nullcontext():
        yield


def _length(hypers: Mapping[str, Any]) -> int:
    return len(tree.leaves(hypers)[0])


def _check_mode(mode: str | None, eval_fn: Any) -> str:
    if eval_fn is None:
        if mode not in (None, "min"):
            raise ValueError(f"sweep: mode={mode!r} needs an eval_fn; losses are minimised")
        return "min"
    if mode not in ("max", "min"):
        raise ValueError("sweep: say which metric of eval_fn is better: mode='max' or mode='min'")
    return mode


def _map_hypers(f: Callable[[Tensor], Tensor], hypers: Any) -> dict[str, Any]:
    """Apply a function to every number of the hypers, those inside schedules too."""
    out: Any = optree.tree_map(f, hypers)
    return out


def _to(value: Tensor, like: Tensor) -> Tensor:
    """Put a hyper beside the parameters, in the precision of their bookkeeping; whole numbers stay whole."""
    dtype = accumulator_dtype(like.dtype) if value.is_floating_point() else value.dtype
    return value.to(device=like.device, dtype=dtype)


def _initial(params: Tree | Callable[[int], Tree], count: int, seed: int, stacked: bool, chosen: Sequence[int]) -> Tree:
    """Return the initial parameters of the chosen ones among ``count`` members, in memory of their own."""
    if callable(params):
        return tree.stack([tree.map(lambda leaf: leaf.detach(), params(seed + i)) for i in chosen])
    tree.check_params(params, "sweep")
    if not stacked:
        return tree.replicate(params, len(chosen))
    for path, leaf in tree.leaves_with_paths(params):
        if leaf.ndim == 0 or len(leaf) != count:
            raise ValueError(f"sweep: params at {path!r} has shape {list(leaf.shape)}, but there are {count} members")
    return tree.map(lambda leaf: leaf.detach()[list(chosen)], params)


class _Recording(dict):
    """A dict that remembers which of its names were asked for."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.read.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.read.add(name)
        return super().get(name, default)

    def __iter__(self) -> Iterator[str]:
        self.read.update(self.keys())
        return super().__iter__()

    def items(self) -> Any:
        self.read.update(self.keys())
        return super().items()


def _try_loss(
    hypers: dict[str, Any], tx: Transform, loss_fn: Callable[..., Any], params: Tree, batch: Any
) -> Callable[[Tree], Tensor]:
    """Run the loss once for one member, so that what is wrong with it, or with a name, is said before compiling.

    Returns:
        The loss of that member as a function of its parameters.

    Raises:
        KeyError: neither the optimizer has a name of the space nor does the loss read it.
        ValueError: the loss is not a 0-d tensor.
    """
    others = [name for name in hypers if name not in tx.hypers]
    with_hypers = takes_hypers(loss_fn)
    for name in () if with_hypers else others:
        raise KeyError(
            f"{unknown_hyper(name, tx._defaults, 'the optimizer')} Should the loss use it? Then it takes a third "
            "argument: loss_fn(params, batch, hypers)."
        )
    asked = _Recording(_map_hypers(lambda value: value[0], hypers))
    run = lambda params: loss_fn(params, batch, asked) if with_hypers else loss_fn(params, batch)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        loss = run(params)
    for name in others:
        if name not in asked.read:
            raise KeyError(f"{unknown_hyper(name, tx._defaults, 'the optimizer')} And the loss did not read it.")
    if not isinstance(loss, Tensor) or loss.ndim:
        got = f"a tensor of shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(f"sweep: the loss of one member must be a 0-d tensor, got {got}")
    return run
