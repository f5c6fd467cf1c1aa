"""Checkpoints: saved as a whole or not at all, and looked at before they are loaded."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from functopt.control import MARKS
from functopt.tree import is_schedule

__all__ = ["check_state_dict", "save", "saved_ids", "with_schedules"]


def save(obj: Any, path: str | os.PathLike[str]) -> None:
    """Save as ``torch.save`` does, so that at every moment the file is either the old one or the new one.

    The new file is written beside the old one, under a name of its own that ends in ``.tmp``; once it is on the disk it
    takes the old one's place. A process that is killed before, or a full disk, leaves the old file as it was; a process
    that is killed may leave the ``.tmp`` file, which can be deleted. ``torch.load`` reads the file.

    Args:
        obj: what to save: tensors, and what else ``torch.save`` takes.
        path: the file. If it is a link, what it leads to is replaced.

    >>> optimizer = StatefulOptimizer(model.parameters(), sgd(lr=0.1))
    >>> save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, folder / "last.pt")
    """
    target = Path(path).resolve()
    temporary = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            torch.save(obj, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if hasattr(os, "O_DIRECTORY"):  # else, on Windows, folders cannot be opened
        folder = os.open(target.parent, os.O_DIRECTORY)
        try:
            os.fsync(folder)  # the new name is on the disk, too
        finally:
            os.close(folder)


def check_state_dict(
    who: str, state_dict: Any, groups: Sequence[Mapping[str, Any]], hypers: Iterable[str] = ()
) -> None:
    """Check that something is made as the ``state_dict`` of an optimizer is, before what is in it is compared.

    Args:
        who: the function that was called.
        state_dict: what was given.
        groups: the param groups that it is for.
        hypers: the names of the hypers that a group holds.

    Raises:
        TypeError: it is no dict of a dict ``state`` and a list ``param_groups``, or something in them is of a type that
            nothing there has.
        ValueError: a parameter or name appears twice, or the names are not as many as the parameters.
    """
    _must(isinstance(state_dict, Mapping), f"{who}: expected a state_dict, got a {_kind(state_dict)}")
    state, saved_groups = state_dict.get("state"), state_dict.get("param_groups")
    _must(isinstance(state, Mapping), f"{who}: the state_dict has no 'state' that is a dict")
    _must(_is_list(saved_groups), f"{who}: the state_dict has no 'param_groups' that is a list")
    meta = all(param.is_meta for group in groups for param in group["params"])
    seen: set[Any] = set()
    for i, group in enumerate(saved_groups):
        own = f"{who}: group {i} of the state_dict"
        _must(isinstance(group, Mapping), f"{own} is a {_kind(group)}, expected a dict")
        ids, names = group.get("params"), group.get("param_names")
        _must(_is_list(ids) and all(isinstance(p, (int, str)) for p in ids), f"{own} has no list 'params' of numbers")
        _must(names is None or _is_list(names), f"{own} has 'param_names' of type {_kind(names)}, expected a list")
        _must(all(isinstance(name, str) for name in names or ()), f"{own} has 'param_names' that are no names")
        if names and len({*names}) < max(len(names), len(ids)):
            raise ValueError(f"{own} has the names {list(names)} for {len(ids)} parameters")
        for p in ids:
            if p in seen:
                raise ValueError(f"{own} has the parameter {p!r}, which is in the state_dict already")
            seen.add(p)
        steps = group.get("steps", 0)
        _must(isinstance(steps, int) and steps >= 0, f"{own} has steps={steps!r}, expected a number of steps")
        for name in hypers:
            for value in group[name].values() if isinstance(group.get(name), dict) else [group.get(name, 0.0)]:
                is_bool = isinstance(value, bool) or (isinstance(value, Tensor) and value.dtype == torch.bool)
                number = isinstance(value, (float, int)) or is_schedule(value) or _is_real(value, meta)
                _must(number and not is_bool, f"{own} has a {name} of type {_kind(value)}, expected a number")
    for i, own in state.items():
        _must(isinstance(own, Mapping), f"{who}: the state of parameter {i!r} is a {_kind(own)}, expected a dict")
        for name, value in own.items():
            where = f"{who}: the state of parameter {i!r} has {name!r}"
            _must(isinstance(name, str), f"{where}, expected a name")
            _must(
                name not in MARKS or isinstance(value, (bool, int)), f"{where} of type {_kind(value)}, expected a bool"
            )
            _must(
                not isinstance(value, Tensor) or _is_real(value, meta), f"{where}, which is no dense tensor of numbers"
            )


def with_schedules(state_dict: Any, groups: Sequence[Mapping[str, Any]]) -> Any:
    """Return an optimizer's state_dict in which schedules are what they were.

    Of named tuples ``torch.distributed.checkpoint`` leaves only the numbers in them. Which schedules those belong to is
    taken from the groups that they are for.
    """
    saved = state_dict.get("param_groups") if isinstance(state_dict, Mapping) else None
    if not isinstance(saved, Sequence) or len(saved) != len(groups):
        return state_dict
    again = [
        {**own, **{name: _as_schedule(own[name], here[name]) for name in own.keys() & here.keys() - {"params"}}}
        if isinstance(own, Mapping)
        else own
        for own, here in zip(saved, groups, strict=True)
    ]
    return {**state_dict, "param_groups": again}


def _as_schedule(value: Any, like: Any) -> Any:
    if isinstance(like, dict) and isinstance(value, dict):
        return {key: _as_schedule(below, like.get(key)) for key, below in value.items()}
    if type(value) not in (list, tuple) or not isinstance(like, (list, tuple)) or len(value) != len(like):
        return value
    parts = [_as_schedule(below, one) for below, one in zip(value, like, strict=True)]
    return type(like)(*parts) if is_schedule(like) else type(like)(parts)


def saved_ids(group: dict[str, Any], saved: dict[str, Any]) -> list[Any]:
    """Return the ids under which a state_dict has the parameters of a group, in the order here."""
    names, saved_names = group.get("param_names"), saved.get("param_names")
    if not names or not saved_names or all(isinstance(i, str) for i in saved["params"]):
        # torch.distributed.checkpoint has put them into the order here, under names of its own, and left param_names
        return saved["params"]
    differing = sorted({*names} ^ {*saved_names})
    if differing:
        raise ValueError(
            f"load_state_dict: the names of the parameters differ: {differing[0]!r} is only on one side. To match them "
            "by their order, delete 'param_names' from the saved param_groups."
        )
    ids = dict(zip(saved_names, saved["params"], strict=True))
    return [ids[name] for name in names]


def _must(so: bool, message: str) -> None:
    if not so:
        raise TypeError(message)


def _kind(value: Any) -> str:
    return type(value).__name__


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _is_real(value: Any, meta: bool) -> bool:
    return (
        isinstance(value, Tensor) and value.layout == torch.strided and not value.is_complex() and meta >= value.is_meta
    )
