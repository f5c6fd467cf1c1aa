"""The networks of ``sweep_models`` in JAX, from the same parameters by name, trained by optax."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from benchmarks.sweep_models import HEADS, batches, hypers, network

jax: Any = import_module("jax")
optax: Any = import_module("optax")
jnp: Any = jax.numpy

BLOCK = 16  # steps in one scan


def _linear(p: Any, name: str, x: Any) -> Any:
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def _mlp(p: Any, x: Any) -> Any:
    return _linear(p, "4", jax.nn.relu(_linear(p, "2", jax.nn.relu(_linear(p, "0", x)))))


def _conv(p: Any, name: str, x: Any) -> Any:
    out = jax.lax.conv_general_dilated(x, p[f"{name}.weight"], (1, 1), "SAME")
    return jax.nn.relu(out + p[f"{name}.bias"][:, None, None])


def _conv_net(p: Any, x: Any) -> Any:
    x = _conv(p, "3", _conv(p, "1", x.reshape(-1, 1, 8, 8)))
    x = x.reshape(*x.shape[:2], 4, 2, 4, 2).max((3, 5))
    x = _conv(p, "6", x)
    return _linear(p, "9", x.reshape(len(x), -1))


def _norm(p: Any, name: str, x: Any) -> Any:
    return jax.nn.standardize(x, epsilon=1e-5) * p[f"{name}.weight"] + p[f"{name}.bias"]


def _block(p: Any, name: str, x: Any) -> Any:
    qkv = _linear(p, f"{name}.qkv", _norm(p, f"{name}.norm1", x))
    q, k, v = (part.reshape(*x.shape[:2], HEADS, -1).transpose(0, 2, 1, 3) for part in jnp.split(qkv, 3, -1))
    weights = jax.nn.softmax(q @ k.swapaxes(-1, -2) * q.shape[-1] ** -0.5, -1)
    x = x + _linear(p, f"{name}.out", (weights @ v).transpose(0, 2, 1, 3).reshape(x.shape))
    return x + _linear(p, f"{name}.down", jax.nn.gelu(_linear(p, f"{name}.up", _norm(p, f"{name}.norm2", x))))


def _transformer(p: Any, x: Any) -> Any:
    x = _linear(p, "embed", x.reshape(-1, 8, 8)) + p["position"]
    x = _block(p, "block2", _block(p, "block1", x))
    return _linear(p, "head", _norm(p, "norm", x).mean(1))


FORWARD: dict[str, Callable[[Any, Any], Any]] = {
    "mlp_small": _mlp, "mlp_medium": _mlp, "conv": _conv_net, "transformer": _transformer,
}  # fmt: skip


class Optax:
    """All members under ``jit(vmap(step))``, donated; with ``scan`` a block of steps in one call."""

    def __init__(self, name: str, members: int, *, scan: bool) -> None:
        start = {key: jnp.asarray(value.detach().numpy()) for key, value in network(name).named_parameters()}
        params = jax.tree.map(lambda leaf: jnp.repeat(leaf[None], members, 0), start)
        self.hypers = {key: jnp.asarray(values) for key, values in hypers(members).items()}
        self.carry = params, jax.vmap(optax.adamw(1e-3).init)(params)
        data = [(jnp.asarray(x.numpy()), jnp.asarray(y.numpy())) for x, y in batches(BLOCK)]
        forward = FORWARD[name]

        def loss(params: Any, batch: Any) -> Any:
            return optax.softmax_cross_entropy_with_integer_labels(forward(params, batch[0]), batch[1]).mean()

        def member(params: Any, state: Any, own: Any, batch: Any) -> Any:
            tx = optax.adamw(own["lr"], b1=own["beta1"], weight_decay=own["weight_decay"])
            value, grads = jax.value_and_grad(loss)(params, batch)
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), value

        def step(carry: Any, own: Any, batch: Any) -> Any:
            return jax.vmap(member, in_axes=(0, 0, 0, None))(*carry, own, batch)

        def block(carry: Any, own: Any, batches: Any) -> Any:
            return jax.lax.scan(lambda carry, batch: step(carry, own, batch), carry, batches)

        self.scan = scan
        self.data = jax.tree.map(lambda *leaves: jnp.stack(leaves), *data) if scan else data
        self.step = jax.jit(block if scan else step, donate_argnums=0)

    def run(self, steps: int) -> None:
        """Take steps: with ``scan`` whole blocks."""
        for i in range(steps // BLOCK if self.scan else steps):
            batch = self.data if self.scan else self.data[i % BLOCK]
            self.carry, _ = self.step(self.carry, self.hypers, batch)
        jax.block_until_ready(self.carry)

    def read(self) -> dict[str, Any]:
        """Return the first member's parameters."""
        return {key: jax.device_get(leaf[0]) for key, leaf in self.carry[0].items()}
