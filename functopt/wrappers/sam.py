"""Sharpness-aware minimisation: the gradient of a point that an adversary has climbed to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from functopt import tree
from functopt.base import Transform, apply_updates, link, state_class
from functopt.combine import combinator, merge_hypers, no_updates
from functopt.hypers import Hypers
from functopt.objective import choose, value_and_grad
from functopt.tree import Tree
from functopt.wrappers.common import check_inner

__all__ = ["SamState", "asam_ascent", "sam", "sam_ascent"]


def _ascend(grads: Tree, scales: Tree, radius: Tree) -> Tree:
    """Return ``-radius·s²·g/‖s·g‖``, 0 where the norm is."""
    scaled = tree.map(lambda g, s: s * g, grads, scales)
    norm = tree.norm(scaled)
    some = norm > 2 * torch.finfo(norm.dtype).tiny ** 0.5  # the norm of zeros is not quite 0
    inverse = torch.where(some, 1 / torch.where(some, norm, 1.0), 0.0)
    return tree.map(lambda g, s, radius: -radius * inverse * s * g, scaled, scales, radius)


@link(scope="tree")
def sam_ascent(radius=0.05) -> Any:
    """Go up the gradient, as the adversary of :func:`sam`, which takes this step with a minus: ``u = -radius·g/‖g‖``.

    Foret et al., "Sharpness-Aware Minimization for Efficiently Improving Generalization" (2021).

    Args:
        radius: how far; the paper's ``ρ``.

    >>> tx = sam_ascent(radius=1.0)
    >>> tx.transform(grads, (), params)[0]
    {'w': tensor([-0.4472, -0.8944])}
    """

    def transform(updates, state, params, radius):
        return _ascend(updates, 1.0, radius), state

    return transform


@link(scope="tree")
def asam_ascent(radius=0.5, eta=0.01) -> Any:
    """Go up the gradient as far as the parameters are large: the adversary that makes :func:`sam` adaptive.

    ``u = -radius·s²·g/‖s·g‖`` with ``s = |p| + eta``, so that scaling a layer up and the next one down changes nothing.
    Kwon et al., "ASAM: Adaptive Sharpness-Aware Minimization for Scale-Invariant Learning of Deep Neural Networks"
    (2021).

    Args:
        radius: how far, relative to the parameters.
        eta: added to their magnitude.

    >>> tx = asam_ascent(radius=1.0, eta=0.0)
    >>> tx.transform(grads, (), params)[0]
    {'w': tensor([-0.2425, -1.9403])}
    """

    def transform(updates, state, params, radius, eta):
        return _ascend(updates, tree.map(lambda p, eta: p.abs() + eta, params, eta), radius), state

    return transform


@state_class
class SamState(NamedTuple):
    """The steps since the optimizer's last, where the adversary started from, and the states of both."""

    count: Any  # 0-d, int64; () in opaque mode  # pyright: ignore[reportIncompatibleMethodOverride]
    cache: Tree  # like the parameters; () in opaque mode
    adversary: Tree
    inner: Tree


@combinator
def sam(
    optimizer: Transform,
    adv_optimizer: Transform | None = None,
    *,
    sync_period: int = 2,
    reset_state: bool = True,
    opaque_mode: bool = False,
) -> Transform:
    """Step with the gradient of a point that an adversary has climbed to, so that flat minima are preferred.

    The adversary takes ``sync_period - 1`` steps up from ``p``, and the optimizer a step from ``p`` with the gradient
    found there. With the default adversary and period, ``p ← p + step(∇f(p + radius·g/‖g‖))``. Foret et al.,
    "Sharpness-Aware Minimization for Efficiently Improving Generalization" (2021).

    There are two modes. Without ``opaque_mode`` each call takes one step, the adversary's or the optimizer's, so that
    the parameters in between are the adversary's; the loop stays as it is, and two calls make one step. With it, a call
    takes all steps and evaluates the gradients itself, from the extra ``value_fn``, a function of the parameters, or
    ``grad_fn``, a function of parameters and the number of the adversary's step (0, 1, ...) that returns a gradient.

    optax has no default adversary, and with ``sync_period=1`` steps from where it was a step before.

    Args:
        optimizer: the optimizer of the parameters.
        adv_optimizer: the adversary, an optimizer too: its steps are taken with the opposite sign. By default
            ``sam_ascent(0.05)``; :func:`asam_ascent` makes it adaptive. It shares hypers with the optimizer if they
            have the same name: rename its learning rate.
        sync_period: after how many steps the optimizer takes one, counting that one.
        reset_state: begin with a new state of the adversary after each of them.
        opaque_mode: do everything in one call.

    Raises:
        TypeError: an optimizer is not a transform, or an extra is missing.
        ValueError: the adversary writes the parameters itself, both have different defaults for one name, or
            ``sync_period`` is less than 1.

    >>> tx = sam(sgd(lr=0.1), opaque_mode=True)
    >>> tx.update(grads, tx.init(params), params, value_fn=loss)[0]
    {'w': tensor([ 0.7955, -1.6089])}
    """
    if adv_optimizer is None:
        adv_optimizer = sam_ascent()
    for what, tx in (("optimizer", optimizer), ("adv_optimizer", adv_optimizer)):
        check_inner("sam", tx, what)
    adversary = adv_optimizer
    if adversary.writes:
        raise ValueError(f"sam: {adversary.name} writes the parameters itself and cannot be the adversary")
    if sync_period < 1:
        raise ValueError(f"sam: sync_period must be at least 1, got {sync_period!r}")

    def init(params: Tree) -> SamState:
        count = tree.counter(params)
        states = adversary._init(params), optimizer._init(params)
        return SamState((), (), *states) if opaque_mode else SamState(count, tree.map(torch.clone, params), *states)

    def climb(grads: Tree, state: Tree, params: Tree, hypers: Hypers, extras: Any) -> tuple[Tree, Tree]:
        updates, state = adversary._transform(grads, state, params, hypers, **extras)
        return apply_updates(params, tree.map(torch.neg, updates)), state

    def alternate(grads: Tree, state: Tree, params: Tree, hypers: Hypers, **extras: Any) -> tuple[Tree, Tree]:
        first, last = state.count == 0, state.count == sync_period - 1
        cache = choose(first, params, state.cache)
        up, adv_state = climb(grads, state.adversary, params, hypers, extras)
        new, inner = optimizer.run(grads, state.inner, cache, hypers, **extras)
        after = adversary._init(params) if reset_state else state.adversary
        states = choose(last, after, adv_state), choose(last, inner, state.inner)
        return choose(last, new, up), SamState((state.count + 1) % sync_period, cache, *states)

    def at_once(step: Callable[..., Any]) -> Callable[..., Any]:
        def run(grads: Tree, state: Tree, params: Tree, hypers: Hypers, **extras: Any) -> tuple[Tree, Tree]:
            gradient = _gradient(extras)
            at, adv_state = params, state.adversary
            for i in range(sync_period - 1):
                at, adv_state = climb(grads, adv_state, at, hypers, extras)
                grads = gradient(at, i)
            out, inner = step(grads, state.inner, params, hypers, **extras)
            return out, SamState((), (), adversary._init(params) if reset_state else adv_state, inner)

        return run

    def checked(step: Callable[..., Any]) -> Callable[..., Any]:
        def run(grads: Tree, state: Tree, params: Tree, hypers: Hypers, **extras: Any) -> tuple[Tree, Tree]:
            if not isinstance(state, SamState) or isinstance(state.count, tuple) != opaque_mode:
                raise ValueError(
                    f"sam: the state belongs to another optimizer: expected SamState of opaque_mode={opaque_mode}, "
                    f"got {type(state).__name__}. Use the state that init of this optimizer returned."
                )
            return step(grads, state, params, hypers, **extras)

        return run

    if opaque_mode:
        transform = checked(at_once(optimizer._transform))
        write = checked(at_once(optimizer.run)) if optimizer.writes else None
    else:
        transform, write = no_updates("sam"), checked(alternate)
    tx = Transform(
        init,
        transform,
        write=write,
        hypers=merge_hypers((optimizer, adversary), "sam"),
        scopes=[*optimizer._scopes, *adversary._scopes, ("sam", "element")],
    )
    tx.__dict__["_takes"] = frozenset({"grad_fn", "value_fn"} if opaque_mode else ())
    return tx


def _gradient(extras: Any) -> Callable[[Tree, int], Tree]:
    if "grad_fn" in extras:
        return extras["grad_fn"]
    if "value_fn" not in extras:
        raise TypeError("sam needs the extra 'value_fn' in opaque mode: call update(..., value_fn=...)")
    return lambda params, i: value_and_grad(extras["value_fn"], params)[1]
