"""Draw the reference data of the families with the real optax, in float64, or check that they are still true.

Run it from the folder ``tests``, where optax and jax are installed (the extra ``bench``)::

    python -m parity.make             # draws all families, or those that are named
    python -m parity.make --check     # computes everything again, and compares

It writes ``data/<family>.npz`` beside itself: trajectories, and under ``facts`` the versions and the calls.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import jax  # pyright: ignore[reportMissingImports]
import jax.numpy as jnp  # pyright: ignore[reportMissingImports]
import numpy as np
import optax  # pyright: ignore[reportMissingImports]

from parity import FAMILIES
from parity.case import LOSSES, Case, given_gradients, settings, start

jax.config.update("jax_enable_x64", True)

HERE = Path(__file__).parent


def trajectory(tx: Any, case: Case) -> dict[str, np.ndarray]:
    """Return the parameters after every step, by name."""
    tx = optax.with_extra_args_support(tx)
    params: Any = {name: jnp.asarray(value) for name, value in start().items()}
    state = tx.init(params)
    if case.wide_counts:
        widen = lambda x: x.astype(jnp.int64) if getattr(x, "dtype", None) == jnp.int32 else x
        state = jax.tree.map(widen, state)
    value_fn = lambda p: LOSSES[case.problem](p, jnp.cos)
    rows: dict[str, list[np.ndarray]] = {name: [] for name in params}

    def update(grads: Any, state: Any, params: Any, extras: Any) -> Any:
        own = {"value_fn": value_fn} if extras else {}
        return tx.update(grads, state, params, **extras, **own)

    update = jax.jit(update) if case.jit else update
    for given in given_gradients():
        grads, extras = given, {}
        if case.problem in LOSSES:
            value, grads = jax.value_and_grad(value_fn)(params)
            extras = {"value": value, "grad": grads}
        updates, state = update(jax.tree.map(jnp.asarray, grads), state, params, extras)
        params = optax.apply_updates(params, updates)
        for name, value in params.items():
            assert value.dtype == jnp.float64, name
            rows[name].append(np.asarray(value))
    return {name: np.stack(values) for name, values in rows.items()}


def drawn(family: Any) -> dict[str, Any]:
    """Return everything that a family's file holds."""
    arrays: dict[str, Any] = {}
    calls: dict[str, list[str]] = {}
    names = {"optax": optax, "jax": jax, "jnp": jnp, **getattr(family, "THEIRS", {})}
    for name, case in family.CASES.items():
        calls[name] = []
        for i, setting in enumerate(settings(name, case)):
            constructor = eval(case.theirs, names)
            for leaf, rows in trajectory(constructor(**setting), case).items():
                arrays[f"{name}|{i}|{leaf}"] = rows
            calls[name].append(f"{case.theirs}({', '.join(f'{key}={value!r}' for key, value in setting.items())})")
    facts = {"optax": optax.__version__, "jax": jax.__version__, "calls": calls}
    arrays["facts"] = np.asarray(json.dumps(facts))
    return arrays


def check(name: str, fresh: dict[str, Any]) -> None:
    """Compare with the file of a family."""
    with np.load(HERE / "data" / f"{name}.npz") as stored:
        assert {*stored.files} == {*fresh}, f"{name}: the cases have changed; draw the data again"
        for key in stored.files:
            if key != "facts":
                # the same program, perhaps with other instructions of another processor
                np.testing.assert_allclose(fresh[key], stored[key], rtol=1e-11, atol=1e-13, err_msg=f"{name}: {key}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("families", nargs="*", default=[*FAMILIES], help="all if none is named")
    parser.add_argument("--check", action="store_true", help="compare with what is stored and write nothing")
    options = parser.parse_args()
    for name in options.families:
        fresh = drawn(FAMILIES[name])
        if options.check:
            check(name, fresh)
        else:
            np.savez_compressed(HERE / "data" / f"{name}.npz", **fresh)
        print(f"{name}: {len(FAMILIES[name].CASES)} cases, {len(fresh) - 1} trajectories")


if __name__ == "__main__":
    main()
