"""How many steps of members a second a sweep takes, against one after the other and against optax."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from benchmarks import report, sweep_models
from benchmarks.measure import in_turn, ratios, summary, target
from benchmarks.worker import FailedError, Worker

TITLE = "Sweeps: member-steps per second, and how many times those of each peer (above 1: functopt is faster)"

OURS, ALONE = "functopt sweep", "torch fused, one by one"
CONTENDERS = [OURS, ALONE, "optax jit(vmap)", "optax jit(scan(vmap))"]
AT = 64  # members for which there are targets
TO_REACH = {
    ALONE: {"mlp_small": 40, "mlp_medium": 10, "conv": 6, "transformer": 7},
    "optax": {"mlp_small": 2.5, "mlp_medium": 2.5},
}
AHEAD = 16  # steps whose batches a sweep reads at once; and those of one call of the scan
SETTLED = 1 + AHEAD  # steps after which a sweep is timed: the first is a call of its own
SECONDS = 0.15  # that one repetition takes, about
LONGEST = 3.0  # seconds of one step, beyond which a contender is given up
TRIALS = 5  # that a sweep compiles at most, before it is chosen how it is run
BYTES = 28  # of memory that AdamW moves for a parameter: reads p, g and two averages, writes p and the averages


# In the worker


class Feed(Sequence[Any]):
    """Batches that are read once for each chunk of members, and time the steps in the middle of each."""

    def __init__(self, data: list[Any], steps: int) -> None:
        self._data, self._steps, self.seconds = data, steps, 0.0

    def __len__(self) -> int:
        return SETTLED + self._steps

    def __getitem__(self, index: Any) -> Any:
        return self._data[index % len(self._data)]

    def __iter__(self) -> Iterator[Any]:
        began = 0.0
        for i in range(len(self)):
            if i == SETTLED:  # all that was asked for before is done
                began = time.perf_counter()
            yield self[i]
        self.seconds += time.perf_counter() - began


class Ours:
    """functopt.sweep, the only place here that knows how it is called: timed without its beginning."""

    def __init__(self, name: str, members: int, *, tune: bool = True) -> None:
        import torch
        from torch.nn import functional as F

        import functopt as fo

        model = sweep_models.network(name)
        params = {key: value.detach() for key, value in model.named_parameters()}
        data, space = sweep_models.batches(), sweep_models.hypers(members)

        def loss_fn(params: Any, batch: Any) -> torch.Tensor:
            x, y = batch
            return F.cross_entropy(torch.func.functional_call(model, params, (x,)), y)

        def sweep(feed: Feed, tune: Any) -> Any:
            return fo.sweep(loss_fn, params, fo.adamw(), space, feed, tune=tune, progress=False)

        self._data, self._sweep = data, sweep
        self._result = sweep(Feed(data, AHEAD), tune)

    def run(self, steps: int) -> float:
        """Train from the start; return the seconds of some steps in the middle, a multiple of those read at once."""
        feed = Feed(self._data, steps)
        self._result = self._sweep(feed, self._result.plan)
        return feed.seconds

    def read(self) -> dict[str, Any]:
        """Return the first member's parameters."""
        return {name: leaf.numpy() for name, leaf in self._result.params(0).items()}

    def plan(self) -> dict[str, int]:
        """Return how the sweep is run."""
        return self._result.plan._asdict()


class Alone:
    """One member after the other, with torch's fused AdamW; the first stands for all."""

    def __init__(self, name: str) -> None:
        import torch

        self._data, (self._hypers) = sweep_models.batches(), sweep_models.hypers(1)
        self._model = sweep_models.network(name)
        (lr,), (decay,), (beta1,) = self._hypers.values()
        params = self._model.parameters()
        self._optimizer = torch.optim.AdamW(params, lr, (beta1, 0.999), weight_decay=decay, fused=True)

    def run(self, steps: int) -> float:
        """Go on training for some steps; return the seconds."""
        from torch.nn import functional as F

        began = time.perf_counter()
        for i in range(steps):
            x, y = self._data[i % len(self._data)]
            self._optimizer.zero_grad()
            F.cross_entropy(self._model(x), y).backward()
            self._optimizer.step()
        return time.perf_counter() - began

    def read(self) -> dict[str, Any]:
        """Return the parameters."""
        return {name: param.detach().numpy() for name, param in self._model.named_parameters()}


class Optax:
    """optax, timed."""

    def __init__(self, name: str, members: int, *, scan: bool) -> None:
        from benchmarks import sweep_jax

        self._inner = sweep_jax.Optax(name, members, scan=scan)
        self.read = self._inner.read

    def run(self, steps: int) -> float:
        """Go on training for some steps; return the seconds."""
        began = time.perf_counter()
        self._inner.run(steps)
        return time.perf_counter() - began


def make(contender: str, network: str, members: int, tune: bool) -> Any:
    """Return a contender."""
    if contender == OURS:
        return Ours(network, members, tune=tune)
    if contender == ALONE:
        return Alone(network)
    return Optax(network, members, scan="scan" in contender)


_contender: Any


def build(contender: str, network: str, members: int, tune: bool) -> dict[str, float]:
    """Make a contender and let it compile; return the seconds of that, and of one step afterwards."""
    global _contender
    began = time.perf_counter()
    _contender = make(contender, network, members, tune)
    _contender.run(AHEAD)
    compiled = time.perf_counter()
    _contender.run(AHEAD)
    return {"first": compiled - began, "step": _contender.run(AHEAD) / AHEAD}


def repetition(steps: int) -> float:
    """Return the seconds of some steps."""
    return _contender.run(steps)


def plan() -> dict[str, int]:
    """Return how a sweep was run."""
    return _contender.plan()


# In the parent


def run(options: Any) -> dict[str, Any]:
    """Measure every network with every number of members."""
    with Worker() as worker:
        limits = worker.call("machine:limits", repeats=options.repeats, quick=options.quick)
    report.say("  " + _limits_line(limits))
    rows = []
    for network in options.networks:
        workers: dict[str, Worker] = {}
        try:
            for members in options.members:
                rows.append(_row(network, members, workers, limits, options))
                report.say(_line(rows[-1]))
        finally:
            for worker in workers.values():
                worker.close()
    return {"limits": limits, "rows": rows, "targets": [line for row in rows for line in _targets(row)]}


def _row(network: str, members: int, workers: dict[str, Worker], limits: Any, options: Any) -> dict[str, Any]:
    row: dict[str, Any] = {
        "network": network,
        "members": members,
        "rates": {},
        "ratios": {},
        "skipped": {},
        "first": {},
    }
    repetitions: dict[str, Callable[[], float]] = {}
    for name in CONTENDERS:
        if name not in workers or not workers[name].alive:
            workers[name] = Worker()
        try:
            limit = options.limit * (TRIALS if name == OURS else 1)
            what = {"contender": name, "network": network, "members": members, "tune": not options.quick}
            built = workers[name].call("sweeps:build", limit, **what)
            if built["step"] > LONGEST:
                raise FailedError(f"one step takes {built['step']:.1f} s")
        except FailedError as error:
            row["skipped"][name] = str(error)
            report.say(f"  {sweep_models.TITLES[network]}, {members} members: {name} skipped: {error}")
            continue
        seconds = 0.01 if options.quick else SECONDS
        steps = min(512, max(1, round(seconds / built["step"])))
        steps = -(-steps // AHEAD) * AHEAD if name == OURS or "scan" in name else steps
        row["first"][name] = built["first"]
        repetitions[name] = lambda name=name, steps=steps: _rate(workers[name], name, steps, members, options.limit)
    rates = in_turn(repetitions, options.repeats)
    row["rates"] = {name: summary(values) for name, values in rates.items()}
    if OURS in rates:
        row["ratios"] = {name: ratios(rates[OURS], values) for name, values in rates.items() if name != OURS}
        row["plan"] = workers[OURS].call("sweeps:plan", options.limit)
        row["of_limits"] = _of_limits(network, row["rates"][OURS]["median"], limits)
    return row


def _rate(worker: Worker, name: str, steps: int, members: int, limit: float) -> float:
    """Return member-steps per second."""
    return steps * (1 if name == ALONE else members) / worker.call("sweeps:repetition", limit, steps=steps)


def _of_limits(network: str, rate: float, limits: dict[str, float]) -> dict[str, float]:
    parameters = sum(param.numel() for param in sweep_models.network(network).parameters())
    gflops, gbytes = 1e-9 * rate * sweep_models.flops(network), 1e-9 * rate * BYTES * parameters
    return {
        "gflops": gflops,
        "gbytes": gbytes,
        "of_products": gflops / limits["gflops"],
        "of_memory": gbytes / limits["gbytes"],
    }


def _targets(row: dict[str, Any]) -> list[dict[str, Any]]:
    if row["members"] != AT:
        return []
    out = []
    for name, ratio in row["ratios"].items():
        limit = TO_REACH[ALONE if name == ALONE else "optax"].get(row["network"])
        if limit:
            where = f"{sweep_models.TITLES[row['network']]}, {AT} members: times {name}"
            out.append(target(where, ratio["median"], limit, at_least=True))
    return out


def _limits_line(limits: dict[str, float]) -> str:
    return (
        f"the processor's limits: {limits['gflops']:.0f} GFLOP/s in a large product of float32 matrices, "
        f"{limits['gflops_small_products']:.0f} in 64 products of 32x64 by 64x32, {limits['gbytes']:.1f} GB/s of memory"
    )


def _line(row: dict[str, Any]) -> str:
    own = f"{row['rates'][OURS]['median']:.0f} member-steps/s" if OURS in row["rates"] else "not measured"
    cells = ", ".join(f"{ratio['median']:.2f} x {name}" for name, ratio in row["ratios"].items())
    return f"  {row['network']}, {row['members']} members: {own}, {cells}"


def table(result: dict[str, Any]) -> str:
    """Return the processor's limits and one table for each network."""
    out = [_limits_line(result["limits"]) + f". Bytes: {BYTES} for each parameter and step, what AdamW must move."]
    for network in dict.fromkeys(row["network"] for row in result["rows"]):
        head = ["members", "member-steps/s", *(f"x {name}" for name in CONTENDERS[1:])]
        lines = [[*head, "GFLOP/s (of limit)", "GB/s (of limit)", "first call, s", "at a time, threads, columns"]]
        for row in result["rows"]:
            if row["network"] != network:
                continue
            cells = [
                report.spread(row["ratios"][name]) if name in row["ratios"] else "skipped" for name in CONTENDERS[1:]
            ]
            own, near = ["skipped"], ["-", "-", "-", "-"]
            if OURS in row["rates"]:
                own, of = [report.spread(row["rates"][OURS])], row["of_limits"]
                near = [f"{of['gflops']:.1f} ({of['of_products']:.0%})", f"{of['gbytes']:.2f} ({of['of_memory']:.0%})"]
                chosen = row["plan"]
                near += [
                    f"{row['first'][OURS]:.1f}",
                    f"{chosen['chunk']}, {chosen['threads']}, {chosen['columns'] >> 10} KiB",
                ]
            lines.append([str(row["members"]), *own, *cells, *near])
        out += [sweep_models.TITLES[network], report.grid(lines)]
    return "\n\n".join(out)


def chart(result: dict[str, Any], path: Any) -> None:
    """Draw member-steps per second over the number of members."""
    networks = list(dict.fromkeys(row["network"] for row in result["rows"]))
    with report.figure(path, 1, len(networks), width=3.6, height=3.2) as axes:
        for ax, network in zip(axes[0], networks, strict=True):
            for name in CONTENDERS:
                rows = [row for row in result["rows"] if row["network"] == network and name in row["rates"]]
                rates = [row["rates"][name]["median"] for row in rows]
                colour = {"color": report.OURS} if name == OURS else {}
                ax.plot([row["members"] for row in rows], rates, "o-", ms=3, label=name, **colour)
            ax.set(xscale="log", yscale="log", xlabel="members")
            ax.set_title(f"{sweep_models.TITLES[network]}: member-steps/s", fontsize=8)
            ax.legend(fontsize=5, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)  # below, off the lines
