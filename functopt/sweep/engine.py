"""The sweep: one vmapped, compiled, donated step that trains every member."""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor

from functopt import tree
from functopt.base import Transform
from functopt.compile import compile as compile_step
from functopt.compile import is_expanded
from functopt.hypers import unknown_hyper
from functopt.numerics import accumulator_dtype
from functopt.sweep.progress import Progress
from functopt.sweep.result import SweepResult
from functopt.sweep.space import draw, log_axes
from functopt.tree import Tree

__all__ = ["sweep"]


class Members(NamedTuple):
    """What a sweep carries from step to step; every leaf has a leading axis of members but ``step``."""

    params: Tree
    state: Tree
    alive: Tensor
    diverged_at: Tensor  # the step at which a member stopped, -1 if it goes on
    step: Tensor  # 0-d: the step that comes next


def sweep(
    loss_fn: Callable[..., Tensor],
    params: Tree | Callable[[int], Tree],
    tx: Transform,
    space: Mapping[str, Any],
    batches: Iterable[Any],
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
    compile: bool = True,
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
        batches: one batch for each step, trees of tensors of the same shapes (another shape compiles again).
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
        compile: run compiled. Eager runs give the same numbers to rounding, sooner for a handful of steps.
        randomness: how random operations in the loss behave across members: ``"different"``, ``"same"`` or ``"error"``.
        progress: show steps per second, members alive and the best loss; by default on a terminal only.

    Returns:
        The trained members, see :class:`SweepResult`.

    Raises:
        KeyError: the space names something that neither the optimizer nor the loss has.
        ValueError: lengths in the space clash, a value is out of range, there are no batches, or the loss is not 0-d.
    """
    hypers, columns = draw(space, members, seed)
    count = len(next(iter(columns.values()))) if columns else _length(hypers)
    mode = _check_mode(mode, eval_fn)
    if record_every < 1 or (eval_every is not None and eval_every < 1):
        raise ValueError("sweep: record_every and eval_every must be at least 1")
    start = _initial(params, count, seed, stacked)
    like = tree.leaves(start)[0]
    hypers = _map_hypers(lambda value: _to(value, like), hypers)
    source = iter(batches)
    first = next(source, _NOTHING)
    if first is _NOTHING:
        raise ValueError("sweep: there are no batches")
    _try_loss(hypers, tx, loss_fn, tree.member(start, 0), first)

    total = _total(batches, steps)
    step_fn = _step_function(loss_fn, tx, randomness, compile)
    evaluate = _Evaluation(eval_fn, mode, metric, randomness)
    carry = Members(
        start,
        _own(torch.func.vmap(tx.init)(start), start),
        torch.ones(count, dtype=torch.bool, device=like.device),
        torch.full((count,), -1, device=like.device),
        torch.zeros((), dtype=torch.int64, device=like.device),
    )
    recorded: list[Tensor] = []
    began = time.perf_counter()
    first_step = 0.0
    done = 0
    with Progress(total, count, show=progress, at_first="compiling" if compile else "") as bar:
        for batch in _take(first, source, steps):
            carry, losses = step_fn(carry, hypers, batch)
            if done % record_every == 0:
                recorded.append(losses)
            done += 1
            if done == 1:
                first_step = time.perf_counter() - began
            if eval_every is not None and done % eval_every == 0:
                evaluate(carry.params, done)
            bar.update(done, carry.alive, losses)
        if not evaluate.steps or evaluate.steps[-1] != done:
            evaluate(carry.params, done)
        curves = torch.stack(recorded).cpu()  # waits for the device
    return SweepResult(
        hypers=columns,
        losses=curves,
        loss_steps=torch.arange(0, done, record_every),
        diverged_at=carry.diverged_at.cpu(),
        metrics=evaluate.final(curves),
        best_metrics=evaluate.best(curves),
        metric=evaluate.ranked_by,
        mode=mode,
        steps=done,
        seconds=time.perf_counter() - began,
        first_step_seconds=first_step,
        log_axes=log_axes(space),
        all_params=carry.params,
        all_states=carry.state,
    )


_NOTHING = object()


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


def _initial(params: Tree | Callable[[int], Tree], count: int, seed: int, stacked: bool) -> Tree:
    if callable(params):
        return tree.stack([tree.map(lambda leaf: leaf.detach(), params(seed + i)) for i in range(count)])
    tree.check_params(params, "sweep")
    if not stacked:
        return tree.replicate(params, count)
    for path, leaf in tree.leaves_with_paths(params):
        if leaf.ndim == 0 or len(leaf) != count:
            raise ValueError(f"sweep: params at {path!r} has shape {list(leaf.shape)}, but there are {count} members")
    return tree.map(lambda leaf: leaf.detach().clone(memory_format=torch.contiguous_format), params)


def _own(state: Tree, params: Tree) -> Tree:
    """Give every leaf memory of its own, for the step to write into.

    vmap returns what does not depend on the members as an expanded view, and a link may keep a parameter as it is.
    """
    taken = {leaf.data_ptr() for leaf in tree.leaves(params)}

    def own(leaf: Tensor) -> Tensor:
        if is_expanded(leaf) or leaf.data_ptr() in taken:
            leaf = leaf.clone(memory_format=torch.contiguous_format)
        taken.add(leaf.data_ptr())
        return leaf

    return tree.map(own, state)


def _takes_hypers(loss_fn: Callable[..., Any]) -> bool:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(loss_fn).parameters.values()
    named = sum(p.kind in kinds and (p.default is p.empty or p.name == "hypers") for p in parameters)
    return named >= 3 or any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters)


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


def _try_loss(hypers: dict[str, Any], tx: Transform, loss_fn: Callable[..., Any], params: Tree, batch: Any) -> None:
    """Run the loss once for one member, so that what is wrong with it, or with a name, is said before compiling.

    Raises:
        KeyError: neither the optimizer has a name of the space nor does the loss read it.
        ValueError: the loss is not a 0-d tensor.
    """
    others = [name for name in hypers if name not in tx.hypers]
    with_hypers = _takes_hypers(loss_fn)
    for name in () if with_hypers else others:
        raise KeyError(
            f"{unknown_hyper(name, tx.hypers, 'the optimizer')} Should the loss use it? Then it takes a third "
            "argument: loss_fn(params, batch, hypers)."
        )
    asked = _Recording(_map_hypers(lambda value: value[0], hypers))
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        loss = loss_fn(params, batch, asked) if with_hypers else loss_fn(params, batch)
    for name in others:
        if name not in asked.read:
            raise KeyError(f"{unknown_hyper(name, tx.hypers, 'the optimizer')} And the loss did not read it.")
    if not isinstance(loss, Tensor) or loss.ndim:
        got = f"a tensor of shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(f"sweep: the loss of one member must be a 0-d tensor, got {got}")


def _total(batches: Iterable[Any], steps: int | None) -> int | None:
    try:
        length = len(batches)  # pyright: ignore[reportArgumentType]
    except TypeError:
        return steps
    return length if steps is None else min(steps, length)


def _take(first: Any, rest: Iterator[Any], steps: int | None) -> Iterator[Any]:
    if steps is not None and steps < 1:
        raise ValueError(f"sweep: steps must be at least 1, got {steps}")
    yield first
    done = 1
    while steps is None or done < steps:
        batch = next(rest, _NOTHING)
        if batch is _NOTHING:
            return
        yield batch
        done += 1


@functools.lru_cache(maxsize=4)
def _step_function(
    loss_fn: Callable[..., Any], tx: Transform, randomness: str, compiled: bool
) -> Callable[[Members, dict[str, Any], Any], tuple[Members, Tensor]]:
    """Return the step of all members: the same for equal arguments, so that a second sweep compiles nothing."""
    with_hypers = _takes_hypers(loss_fn)

    def member(params: Tree, state: Tree, alive: Tensor, hypers: dict[str, Any], batch: Any) -> tuple[Any, ...]:
        arguments = (batch, hypers) if with_hypers else (batch,)
        grads, loss = torch.func.grad_and_value(loss_fn)(params, *arguments)
        own = {name: value for name, value in hypers.items() if name in tx.hypers}
        new_params, new_state = tx.update(grads, state, params, own, value=loss)
        finite = torch.isfinite(loss)
        for leaf in tree.leaves(new_params):
            finite = finite & torch.isfinite(leaf).all()
        alive = alive & finite
        keep = lambda new, old: torch.where(alive, new, old)
        return tree.map(keep, new_params, params), tree.map(keep, new_state, state), alive, loss

    def step(carry: Members, hypers: dict[str, Any], batch: Any) -> tuple[Members, Tensor]:
        mapped = torch.func.vmap(member, in_dims=(0, 0, 0, 0, None), randomness=randomness)
        params, state, alive, losses = mapped(carry.params, carry.state, carry.alive, hypers, batch)
        diverged_at = torch.where(carry.alive & ~alive, carry.step, carry.diverged_at)
        losses = torch.where(carry.alive, losses, torch.nan)
        return Members(params, state, alive, diverged_at, carry.step + 1), losses

    return compile_step(step, donate=(0,)) if compiled else step


class _Evaluation:
    """Runs ``eval_fn`` for all members, and keeps what it returned at each call."""

    def __init__(self, eval_fn: Callable[[Tree], Any] | None, mode: str, metric: str | None, randomness: str) -> None:
        self.eval_fn = eval_fn
        self.mode = mode
        self.ranked_by = metric or ("loss" if eval_fn is None else "")
        self.randomness = randomness
        self.steps: list[int] = []
        self.history: dict[str, list[Tensor]] = {}

    def __call__(self, params: Tree, step: int) -> None:
        if self.eval_fn is None:
            return
        with torch.no_grad():
            out = torch.func.vmap(self.eval_fn, randomness=self.randomness)(params)
        metrics = out if isinstance(out, dict) else {_metric_name(self.eval_fn): out}
        if not self.ranked_by:
            self.ranked_by = next(iter(metrics))
        if self.ranked_by not in metrics:
            raise KeyError(f"sweep: eval_fn returned no metric {self.ranked_by!r}; it returned {sorted(metrics)}")
        self.steps.append(step)
        for name, values in metrics.items():
            if values.ndim != 1:
                raise ValueError(f"sweep: the metric {name!r} has shape {list(values.shape[1:])} for a member, not 0-d")
            self.history.setdefault(name, []).append(values.double())

    def final(self, losses: Tensor) -> dict[str, Tensor]:
        if self.eval_fn is None:
            return {"loss": losses[-max(1, len(losses) // 10) :].double().mean(0)}
        return {name: values[-1].cpu() for name, values in self.history.items()}

    def best(self, losses: Tensor) -> dict[str, Tensor]:
        """Return each member's values at the evaluation where the ranking metric was best."""
        if self.eval_fn is None:
            return self.final(losses)
        ranking = torch.stack(self.history[self.ranked_by])
        worst = -torch.inf if self.mode == "max" else torch.inf
        at = ranking.nan_to_num(nan=worst) if self.mode == "max" else -ranking.nan_to_num(nan=worst)
        rows = at.argmax(0, keepdim=True)
        return {name: torch.stack(values).gather(0, rows)[0].cpu() for name, values in self.history.items()}


def _metric_name(eval_fn: Callable[..., Any]) -> str:
    name = getattr(eval_fn, "__name__", "metric")
    return name if name.isidentifier() and name != "<lambda>" else "metric"
