"""Which campaign this is: what its results depend on, as JSON values that can be compared."""

from __future__ import annotations

import dataclasses
import functools
import hashlib

from importlib.metadata import PackageNotFoundError, version
from types import CodeType
from typing import TYPE_CHECKING, Any

import torch

from pystack_nb.faults import bits


if TYPE_CHECKING:
    from collections.abc import Iterable

    import pandas as pd


def of_model(model: torch.nn.Module) -> dict[str, str]:
    """Give hashes of a model's structure and of its weights' and buffers' stored bits."""
    lines = [
        f"{name}|{type(module).__module__}.{type(module).__qualname__}|{module.extra_repr()}"
        f"|{module.training}"
        for name, module in model.named_modules()
    ]
    return {
        "structure": _digest(lines),
        "weights": of_values([(k, v) for k, v in sorted(model.state_dict().items())]),
    }


def of_table(table: pd.DataFrame) -> str:
    """Give a hash of a table's text."""
    return _digest([table.astype(str).to_csv(index=False)])


def of_values(value: Any) -> str:
    """Give a hash of tensors by their stored bits, in any nesting of tuples and lists."""
    return _digest(_pieces(value))


def of_versions() -> dict[str, str]:
    """Give the versions of what computes the results."""
    found = {}
    for name in ("pystack-nb", "torch", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found


def describe(thing: Any) -> str:
    """Say what an error model, a metric or a function is, alike in each process.

    A function is told by its name and a hash of its code, since its ``repr`` holds an address.
    """
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        parts = [f"{x.name}={describe(getattr(thing, x.name))}" for x in dataclasses.fields(thing)]
        return f"{type(thing).__qualname__}({', '.join(parts)})"
    if isinstance(thing, functools.partial):
        parts = [describe(x) for x in (thing.func, *thing.args, *sorted(thing.keywords.items()))]
        return f"partial({', '.join(parts)})"
    if isinstance(thing, tuple | list):
        return f"({', '.join(describe(x) for x in thing)})"
    code = getattr(thing, "__code__", None)
    if isinstance(code, CodeType):
        return f"{thing.__module__}.{thing.__qualname__}#{_digest(_code(code))[:12]}"
    text = repr(thing)
    return type(thing).__qualname__ if " at 0x" in text else text


def _code(code: CodeType) -> Iterable[bytes | str]:
    yield code.co_code
    yield repr(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _code(constant)
        else:
            yield repr(constant)


def _pieces(value: Any) -> Iterable[bytes | str]:
    if isinstance(value, torch.Tensor):
        shown = torch.view_as_real(value) if value.is_complex() else value
        yield f"{value.dtype}{tuple(value.shape)}"
        yield bits.stored(shown.detach()).cpu().contiguous().numpy().tobytes()
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _pieces(part)
    else:
        yield describe(value)


def _digest(pieces: Iterable[bytes | str]) -> str:
    found = hashlib.sha256()
    for piece in pieces:
        data = piece.encode() if isinstance(piece, str) else piece
        found.update(len(data).to_bytes(8, "little"))
        found.update(data)
    return found.hexdigest()
