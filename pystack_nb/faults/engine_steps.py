"""Single operations of a program: what they take, make and change, and how they are run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from torch.utils import _pytree as pytree

from pystack_nb.faults.engine_trace import Ref, Step


if TYPE_CHECKING:
    from collections.abc import Callable, Collection

Env = dict[int, torch.Tensor]


@dataclass(frozen=True)
class Affine:
    """A number that grows with the batch."""

    base: int
    slope: int


def ids(*values: Any) -> list[int]:
    """Give the traced tensors in some values."""
    return [x.id for x in pytree.tree_leaves(values) if isinstance(x, Ref)]


def needs(step: Step) -> tuple[set[int], set[int], set[int]]:
    """Give the memory from outside that a step reads, the tensors that it takes and makes."""
    outside = {
        x.untyped_storage()._cdata  # noqa: SLF001
        for x in pytree.tree_leaves((step.args, step.kwargs))
        if isinstance(x, torch.Tensor)
    }
    return outside, set(ids(step.args, step.kwargs)), set(ids(step.out))


def name_of(step: Step) -> str:
    """Give the plain name of an operation, as ``conv2d``; none for what has no name."""
    return getattr(step.op, "__name__", "").split(".")[0]


def arguments_of(step: Step) -> dict[str, Any]:
    """Give a step's arguments by name; none for what is no operation of torch."""
    schema = getattr(step.op, "_schema", None)
    if schema is None:
        return {}
    return dict(zip([a.name for a in schema.arguments], step.args, strict=False)) | step.kwargs


def mutated(step: Step) -> Collection[Any]:
    """Give the tensors that a step changes in place: ids, and None for one from outside."""
    given, schema = arguments_of(step), getattr(step.op, "_schema", None)
    arguments = schema.arguments if schema is not None else []
    written = [given.get(a.name) for a in arguments if a.alias_info and a.alias_info.is_write]
    leaves = [x for x in pytree.tree_leaves(written) if x is not None]
    return [x.id if isinstance(x, Ref) else None for x in leaves]


def compiled(step: Step) -> Callable[[Env, int], None]:
    """Make a function that runs a step; what varies is put into a copy of its arguments."""
    op, store = step.op, _storer(step.out)
    if step.site is not None:
        source, target = step.args[0].id, step.out.id

        def alias(env: Env, _: int) -> None:
            env[target] = env[source]

        return alias
    filled = [(i, _filler(a)) for i, a in enumerate(step.args) if _varies(a)]
    named = [(k, _filler(a)) for k, a in step.kwargs.items() if _varies(a)]
    template, kwargs = list(step.args), step.kwargs

    def run(env: Env, batch: int) -> None:
        args = template.copy()
        for i, fill in filled:
            args[i] = fill(env, batch)
        if named:
            store(env, op(*args, **(kwargs | {k: fill(env, batch) for k, fill in named})))
        else:
            store(env, op(*args, **kwargs))

    return run


def _varies(value: Any) -> bool:
    return any(isinstance(x, Ref | Affine) for x in pytree.tree_leaves(value))


def _filler(value: Any) -> Callable[[Env, int], Any]:
    if isinstance(value, Ref):
        number = value.id
        return lambda env, _: env[number]
    if isinstance(value, Affine):
        return lambda _, batch: value.base + value.slope * batch
    if isinstance(value, list | tuple) and type(value) in {list, tuple}:
        parts, make = [_filler(x) for x in value], type(value)
        return lambda env, batch: make(part(env, batch) for part in parts)
    return lambda _, __: value


def _storer(out: Any) -> Callable[[Env, Any], None]:
    if isinstance(out, Ref):
        number = out.id

        def store(env: Env, result: Any) -> None:
            env[number] = result

        return store
    ids = [x.id if isinstance(x, Ref) else None for x in pytree.tree_leaves(out)]

    def store_all(env: Env, result: Any) -> None:
        for i, leaf in zip(ids, pytree.tree_leaves(result), strict=True):
            if i is not None:
                env[i] = leaf

    return store_all
