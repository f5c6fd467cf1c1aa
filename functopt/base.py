"""The contract: an optimizer is a frozen value that holds two pure functions and the defaults of its hypers."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from types import MappingProxyType
from typing import Any, Literal, TypeVar, get_args, overload

import optree
import torch

from functopt import tree
from functopt.hypers import (
    Hypers,
    NestedHypers,
    check_hyper,
    flat_hypers,
    hashable,
    same_value,
    show,
    unknown_hyper,
)
from functopt.tree import Tree

__all__ = ["Scope", "Transform", "apply_updates", "link", "state_class"]

StateClass = TypeVar("StateClass", bound=type)

Scope = Literal["element", "leaf", "tree", "matrix", "examples", "any"]
"""On what an entry of a link's result may depend, beside the hypers; see :func:`link`."""


def apply_updates(params: Tree, updates: Tree) -> Tree:
    """Return ``params + updates``, computed in the wider dtype and cast to the dtype of each parameter."""
    return tree.map(lambda p, u: (p + u).to(p.dtype), params, updates)


def state_class(cls: StateClass) -> StateClass:
    """Mark a named tuple as optimizer state, so that ``torch.load(..., weights_only=True)`` reads it back."""
    torch.serialization.add_safe_globals([cls])
    return cls


class Transform:
    """An optimizer, or one link of one: a frozen value that holds pure functions.

    Make one with a recipe (``adamw(lr=1e-3)``), with :func:`chain <functopt.chain>`, or with the :func:`link`
    decorator.

    A transform prints as the call that made it, can be pickled, and equals every other that was made with equal
    arguments. It is not a pytree: it holds no numbers that a program computes with, only their defaults.
    """

    _init: Callable[[Tree], Tree]
    _transform: Callable[..., tuple[Tree, Tree]]
    _write: Callable[..., tuple[Tree, Tree]] | None
    _defaults: dict[str, Any]
    _rebind: Callable[[dict[str, Any]], Transform] | None
    _scopes: frozenset[tuple[str, Scope]]
    _counts_steps: bool
    _takes_complex: bool
    _paced: frozenset[str]
    _call: tuple[Callable[..., Transform], tuple[Any, ...], dict[str, Any]] | None

    def __init__(
        self,
        init: Callable[[Tree], Tree],
        transform: Callable[..., tuple[Tree, Tree]],
        *,
        write: Callable[..., tuple[Tree, Tree]] | None = None,
        hypers: Hypers | None = None,
        rebind: Callable[[dict[str, Any]], Transform] | None = None,
        scopes: Iterable[tuple[str, Scope]] = (("a Transform built from bare functions", "any"),),
    ) -> None:
        """Put a transform together from functions; links and combinators do it for you.

        Args:
            init: ``(params) -> state``.
            transform: ``(updates, state, params, hypers, **extras) -> (updates, state)``.
            write: ``(grads, state, params, hypers, **extras) -> (new_params, state)`` for a transform that decides
                itself what is written into the parameters; nothing can be chained after it.
            hypers: the defaults.
            rebind: ``(new_defaults) -> Transform``, the same transform with other defaults.
            scopes: the name and scope of every link that it is made of, see :func:`link`.
        """
        fields = {
            "_init": init,
            "_transform": transform,
            "_write": write,
            "_defaults": flat_hypers(hypers or {}),
            "_rebind": rebind,
            "_scopes": frozenset(scopes),
            "_counts_steps": False,
            "_paced": frozenset(),  # the names of hypers whose schedules go by a counter inside, see `combinator`
            "_takes": frozenset(),  # the names of extras
            "_takes_complex": False,
            "_call": None,
        }
        self.__dict__.update(fields)

    @property
    def hypers(self) -> Hypers:
        """The default of every hyper, by name.

        A default is a number, a 0-d tensor, a schedule, or a prefix tree of the parameters with those at its leaves.
        Those of the parts of a :func:`partition <functopt.partition>` are mappings by name again.
        """
        nested = any("." in name for name in self._defaults)
        return NestedHypers(self._defaults) if nested else MappingProxyType(self._defaults)

    def init(self, params: Tree) -> Tree:
        """Return the state for ``params``, a tree of tensors in which every leaf owns its memory.

        Raises:
            ValueError: ``params`` has no leaves.
            TypeError: a leaf is not a dense floating-point tensor.
        """
        tree.check_params(params, self.name, complex=self._takes_complex)
        return self._init(params)

    def transform(
        self, updates: Tree, state: Tree, params: Tree, hypers: Hypers | None = None, **extras: Any
    ) -> tuple[Tree, Tree]:
        """Turn updates (gradients, for the first link) into updates: what ``chain`` composes.

        Args:
            updates: a tree like ``params``. What comes out is *added* to the parameters, so a descent step is negative.
            state: from :meth:`init` or the call before.
            params: the parameters at which the gradient was taken.
            hypers: values that take the place of the defaults; names that the transform does not have are ignored.
            **extras: what only some links need, such as ``value=loss``.

        Raises:
            TypeError: the transform writes the parameters itself, so that it has no updates to return.
        """
        given = flat_hypers(hypers or {}, self._defaults)
        return self._transform(updates, state, params, {**self._defaults, **given}, **extras)

    def update(
        self, grads: Tree, state: Tree, params: Tree, hypers: Hypers | None = None, **extras: Any
    ) -> tuple[Tree, Tree]:
        """Take one step: what a training loop calls.

        Args:
            grads: the gradient of the loss at ``params``, with the structure, shapes and dtypes of ``params``.
            state: from :meth:`init` or the step before.
            params: the parameters.
            hypers: values for this step, over the defaults. Tensors may be batched by ``vmap``, may change at every
                step without a recompile, and may require gradients.
            **extras: what only some links need, such as ``value=loss``. The extra ``grad`` is ``grads`` if not given.

        Returns:
            ``(new_params, new_state)``; no argument is changed.

        Raises:
            KeyError: a hyper has a name that the optimizer does not have.
            ValueError: gradients, state or hypers do not fit the parameters; the message names the path.
        """
        tree.check_params(params, self.name, complex=self._takes_complex)
        if not any(scope == "examples" for _, scope in self._scopes):
            tree.check_same(grads, params, "gradient")
        values, extras = self._resolve(hypers, params), {"grad": grads, **extras}
        if self._write is not None:
            return self._write(grads, state, params, values, **extras)
        updates, state = self._transform(grads, state, params, values, **extras)
        return apply_updates(params, updates), state

    def with_hypers(self, **hypers: Any) -> Transform:
        """Return the same optimizer with other defaults.

        Raises:
            KeyError: the optimizer has no hyper of that name; the message lists those it has.
        """
        hypers = flat_hypers(hypers, self._defaults)
        self.check_names(hypers)
        if not hypers:
            return self
        if self._rebind is None:
            raise TypeError(f"{self.name}: this Transform was built without rebind, so its defaults are fixed")
        return self._rebind(hypers)

    # What combinators use

    @property
    def layout_invariant(self) -> bool:
        """Whether the result does not depend on how the scalars are grouped into leaves."""
        return not self.links_beyond("element", "tree")

    def links_beyond(self, *scopes: Scope) -> list[str]:
        """Return the names of the links whose scope is none of these."""
        return sorted({name for name, scope in self._scopes if scope not in scopes})

    @property
    def name(self) -> str:
        """The name of the function that made the transform."""
        return self._call[0].__name__ if self._call else type(self).__name__

    @property
    def writes(self) -> bool:
        """Whether the transform writes the parameters itself, so that nothing can be chained after it."""
        return self._write is not None

    def run(self, grads: Tree, state: Tree, params: Tree, hypers: Hypers, **extras: Any) -> tuple[Tree, Tree]:
        """Take one step as :meth:`update` does, without its checks: for wrappers, whose caller has made them."""
        extras = {"grad": grads, **extras}
        if self._write is not None:
            return self._write(grads, state, params, {**self._defaults, **hypers}, **extras)
        updates, state = self._transform(grads, state, params, {**self._defaults, **hypers}, **extras)
        return apply_updates(params, updates), state

    def takes_schedule(self, name: str) -> bool:
        """Tell whether there is a step counter for a schedule of this hyper."""
        return self._counts_steps or name in self._paced

    def check_names(self, names: Iterable[str]) -> None:
        """Raise a KeyError that says what was probably meant if a name is not a hyper of this transform."""
        for name in names:
            if name not in self._defaults:
                raise KeyError(unknown_hyper(name, self._defaults, self.name))

    def _resolve(self, hypers: Hypers | None, params: Tree) -> dict[str, Any]:
        if hypers:
            hypers = flat_hypers(hypers, self._defaults)
            self.check_names(hypers)
        values = {**self._defaults, **(hypers or {})}
        for name, value in values.items():
            check_hyper(self.name, name, value, params, schedules=self.takes_schedule(name))
        return values

    # A value

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{self.name}: a Transform is frozen; use with_hypers() to get one with other defaults")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{self.name}: a Transform is frozen")

    def __repr__(self) -> str:
        if self._call is None:
            return f"Transform({self._init!r}, {self._transform!r}, hypers={self._defaults!r})"
        factory, args, kwargs = self._call
        shown = [show(arg) for arg in args] + [f"{name}={show(arg)}" for name, arg in kwargs.items()]
        return f"{factory.__name__}({', '.join(shown)})"

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Transform) or self._call is None or other._call is None:
            return NotImplemented
        return self._call[0] is other._call[0] and same_value(self._call[1:], other._call[1:])

    def __hash__(self) -> int:
        return object.__hash__(self) if self._call is None else hash((self._call[0], hashable(self._call[1:])))

    def __reduce__(self) -> tuple[Any, ...]:
        if self._call is None:
            raise TypeError(
                "a Transform built from bare functions cannot be pickled; make it with @link or a combinator"
            )
        factory, args, kwargs = self._call
        return _remake, (factory, args, kwargs)

    def __copy__(self) -> Transform:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Transform:
        return self


def _remake(factory: Callable[..., Transform], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Transform:
    return factory(*args, **kwargs)


# Links


def _settle(value: Any) -> Any:
    """Copy the containers of an argument, so that a caller who changes them later does not change the transform."""
    return optree.tree_map(lambda leaf: leaf, value, none_is_leaf=True)


def with_call(
    tx: Transform, factory: Callable[..., Transform], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Transform:
    """Tell a transform, while it is being made, which call makes it: what it prints, compares and pickles as."""
    tx.__dict__["_call"] = (factory, args, kwargs)
    return tx


@overload
def link(definition: Callable[..., Any]) -> Callable[..., Transform]: ...


@overload
def link(
    *, scope: Scope | Callable[..., Scope] = "any"
) -> Callable[[Callable[..., Any]], Callable[..., Transform]]: ...


def link(definition: Callable[..., Any] | None = None, *, scope: Scope | Callable[..., Scope] = "any") -> Any:
    """Turn a function that returns ``(init, transform)`` into a constructor of :class:`Transform` values.

    The signature of the decorated function says what is data and what is structure: parameters that may be given by
    position are *hypers*, keyword-only ones are *structure* (they choose the program, not its numbers). The inner
    ``transform(updates, state, params, ...)`` names every hyper, and gets the values in force at the step; further
    names of it are *extras* (``value=loss``), required if they have no default. A link without state returns
    ``transform`` alone.

    The *scope* says on what an entry of the result may depend, and with that how the link may be run: flat, in pieces,
    in batches of leaves, or only as it is.

    - ``"element"``: on the same entry of what comes in (Adam). Any layout and any piece will do.
    - ``"tree"``: on all entries, however they are grouped into leaves (a global norm, by :func:`tree.norm
      <functopt.tree.norm>`). Any layout will do; and any piece too, if the link is otherwise elementwise and takes the
      norm of all that comes in as the optional extra ``updates_norm``.
    - ``"leaf"``: on the entries of the same leaf, and that only through :func:`tree.sums <functopt.tree.sums>` and
      ``tree.means`` (trust ratios) or masks. Then it runs on :func:`packed <functopt.pack>` leaves too.
    - ``"matrix"``: on the leaf and its shape (factored moments).
    - ``"examples"``: on anything; it takes gradients with a leading axis of examples, and checks their shapes itself.
    - ``"any"``: on anything; leaves are never regrouped.

    In the functions that ``"element"`` and ``"leaf"`` links map over leaves, hypers and masks may be tensors that
    broadcast against the leaf: choose with ``torch.where``, not with ``if``.

    Args:
        definition: the function.
        scope: its scope, or a function of the structure arguments that returns it.

    Raises:
        TypeError: ``transform`` does not name exactly the declared hypers, so that one would be a constant by accident.
        ValueError: there is no such scope.

    >>> @link(scope="element")
    ... def sign_descent(lr=1e-3):
    ...     def transform(updates, state, params, lr):
    ...         return tree.map(lambda u, lr: -lr * u.sign(), updates, lr), state
    ...     return transform
    >>> sign_descent(lr=0.1)
    sign_descent(lr=0.1)
    """
    if definition is None:
        return functools.partial(link, scope=scope)
    if not callable(scope) and scope not in get_args(Scope):
        raise ValueError(f"link: the scope of {definition.__name__} must be one of {get_args(Scope)}, got {scope!r}")
    signature = inspect.signature(definition)
    kinds = {name: parameter.kind for name, parameter in signature.parameters.items()}
    if inspect.Parameter.VAR_POSITIONAL in kinds.values() or inspect.Parameter.VAR_KEYWORD in kinds.values():
        raise TypeError(f"link: {definition.__name__} takes *args or **kwargs; name every hyper")
    structure_names = [name for name, kind in kinds.items() if kind is inspect.Parameter.KEYWORD_ONLY]
    hyper_names = [name for name in kinds if name not in structure_names]
    title = definition.__name__

    @functools.wraps(definition)
    def make(*args: Any, **kwargs: Any) -> Transform:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        arguments = {name: _settle(value) for name, value in bound.arguments.items()}
        hypers = {name: arguments[name] for name in hyper_names}
        structure = {name: arguments[name] for name in structure_names}
        for name, value in hypers.items():
            check_hyper(title, name, value)
        made = definition(*hypers.values(), **structure)  # pyright: ignore[reportCallIssue]
        init, transform = (_no_state, made) if callable(made) else made
        run = _bind_transform(title, transform, hypers, structure, _state_name(init))
        tx = Transform(
            init,
            run,
            hypers=hypers,
            rebind=lambda new: make(**{**arguments, **new}),
            scopes=[(title, scope(**structure) if callable(scope) else scope)],
        )
        tx.__dict__["_takes"] = frozenset(inspect.signature(transform).parameters) - hypers.keys()
        shown = {n: v for n, v in structure.items() if not same_value(v, signature.parameters[n].default)}
        return with_call(tx, make, (), {**hypers, **shown})

    return make


def _no_state(params: Tree) -> tuple[()]:
    return ()


def _state_name(init: Callable[..., Any]) -> str:
    """Return the name of the state class that ``init`` is annotated to return, "()" for none, "" if it does not say."""
    if init is _no_state:
        return "()"
    annotation = inspect.signature(init).return_annotation
    if annotation is inspect.Signature.empty:
        return ""
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")


def _bind_transform(
    title: str, transform: Callable[..., Any], hypers: Hypers, structure: Hypers, state_name: str
) -> Callable[..., tuple[Tree, Tree]]:
    parameters = list(inspect.signature(transform).parameters.values())[3:]
    named = [p.name for p in parameters]
    missing = [name for name in hypers if name not in named]
    if missing:
        raise TypeError(
            f"{title}: transform must name the hyper {missing[0]!r}, as in transform(updates, state, params, "
            f"{', '.join(hypers)}); otherwise its default would be a constant of the program."
        )
    wrong = [name for name in named if name in structure]
    if wrong:
        raise TypeError(f"{title}: {wrong[0]!r} is structure (keyword-only); read it from {title}, not from transform")
    extra_names = [p.name for p in parameters if p.name not in hypers]
    required = [p.name for p in parameters if p.name not in hypers and p.default is inspect.Parameter.empty]

    def run(updates: Tree, state: Tree, params: Tree, values: Hypers, **extras: Any) -> tuple[Tree, Tree]:
        if state_name and (type(state).__name__ if state != () else "()") != state_name:
            raise ValueError(
                f"{title}: the state belongs to another optimizer: expected {state_name}, got "
                f"{type(state).__name__}. Use the state that init of this optimizer returned."
            )
        for name in required:
            if name not in extras:
                raise TypeError(f"{title} needs the extra {name!r}: call update(..., {name}=...)")
        given = {name: extras[name] for name in extra_names if name in extras}
        return transform(updates, state, params, **{name: values[name] for name in hypers}, **given)

    return run
