"""Tensors inside what modules take and give: tuples, lists, dicts and dataclasses of them.

Their names are roles: ``output`` for a tensor alone, else ``output.0``, ``output.logits``,
``output.1.0``; ``input`` for a sole positional tensor, else ``input.0``, ``input.kw.mask``.
Of two that would read alike the second one is ``output.a.b~2``.
"""

from __future__ import annotations

import copy
import dataclasses

from typing import TYPE_CHECKING, Any

import torch


if TYPE_CHECKING:
    from collections.abc import Iterator

    Path = tuple[Any, ...]


def outputs(value: Any) -> dict[str, Path]:
    """Give the role and path of each tensor in what a module gave."""
    paths = [*_tensors(value)]
    return _named([("output", *path) for path in paths], paths)


def inputs(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Path]:
    """Give the role of each tensor that a module is given, and its path in ``(args, kwargs)``."""
    paths = [*_tensors((args, kwargs))]
    if paths == [(0, 0)]:
        return {"input": paths[0]}
    names = [("input", *(path[1:] if path[0] == 0 else ("kw", *path[1:]))) for path in paths]
    return _named(names, paths)


def resolve(role: str, found: dict[str, Path]) -> str | None:
    """Give the role under which a tensor is known, None for none.

    A sole tensor may be called ``output`` or ``input`` however deep it lies.
    """
    if role in found:
        return role
    if role in {"output", "input"} and len(found) == 1:
        return next(iter(found))
    return "input" if role == "input.0" and "input" in found else None


def get(value: Any, path: Path) -> torch.Tensor:
    """Give the tensor at a path."""
    for step in path:
        value = getattr(value, step) if _is_record(value) else value[step]
    tensor: torch.Tensor = value
    return tensor


def replaced(value: Any, path: Path, tensor: torch.Tensor) -> Any:
    """Give the structure with another tensor at a path; the one given is left as it is."""
    if not path:
        return tensor
    step, *rest = path
    if _is_record(value):
        new = copy.copy(value)
        # A frozen dataclass refuses assignments, and the copy is nobody else's yet.
        object.__setattr__(new, step, replaced(getattr(value, step), tuple(rest), tensor))
        return new
    inner = replaced(value[step], tuple(rest), tensor)
    if isinstance(value, tuple):
        items = [inner if i == step else item for i, item in enumerate(value)]
        if hasattr(value, "_make"):
            return value._make(items)
        return type(value)(items)
    new = copy.copy(value)
    new[step] = inner
    return new


def copied(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Copy what a module is given, so that it may change it: ``(args, kwargs)``.

    What was one tensor is one again, for modules look at that.
    """
    whole: Any = (args, kwargs)
    copies: dict[int, torch.Tensor] = {}
    paths = [*_tensors(whole)]
    for path in paths:
        tensor = get(whole, path)
        if id(tensor) not in copies:
            copies[id(tensor)] = tensor.detach().clone().requires_grad_(tensor.requires_grad)
    for path in paths:
        whole = replaced(whole, path, copies[id(get((args, kwargs), path))])
    return whole


def _named(names: list[Path], paths: list[Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for name, path in zip(names, paths, strict=True):
        # A key with a dot, or a number beside its text, may read as another path.
        plain = role = ".".join(map(str, name))
        number = 1
        while role in found:
            number += 1
            role = f"{plain}~{number}"
        found[role] = path
    return found


def _tensors(value: Any) -> Iterator[Path]:
    if isinstance(value, torch.Tensor):
        yield ()
        return
    steps: Any = ()
    if isinstance(value, dict):
        steps = value.items()
    elif isinstance(value, tuple | list):
        steps = enumerate(value)
    elif _is_record(value):
        steps = ((f.name, getattr(value, f.name, None)) for f in dataclasses.fields(value))
    for step, item in steps:
        yield from ((step, *path) for path in _tensors(item))


def _is_record(value: Any) -> bool:
    return (
        dataclasses.is_dataclass(value)
        and not isinstance(value, type)
        and not isinstance(value, dict | tuple | list)
    )
