"""Which model a recorded forward is of: layers of several may have the same names."""

from __future__ import annotations

import hashlib
import os

from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from pystack_nb.errors import FaultError
from pystack_nb.faults.layers import layers


if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch

    from pystack_nb.faults.layers import Layer

_own: WeakKeyDictionary[torch.nn.Module, str] = WeakKeyDictionary()


def identity(model: torch.nn.Module) -> str:
    """Give the text that stands for a model in its events: ``structure-own``.

    ``structure`` is a hash of the layers' names and types and their tensors' shapes and types,
    which a model that is built or loaded anew has again; ``own`` is this object's alone.
    """
    return f"{_structure(layers(model).values())}-{_number(model)}"


def chosen(model: torch.nn.Module, among: Iterable[str]) -> set[str]:
    """Give those of the recorded identities that are this model's.

    Raises
    ------
    FaultError
        If none is, or one of several models of the same structure, nobody knows which.
    """
    known = {*among}
    own = {text for text in known if text.endswith(f"-{_number(model)}")}
    if own:
        return own
    structure = _structure(layers(model).values())
    alike = {text for text in known if text.startswith(f"{structure}-")}
    if len(alike) > 1:
        raise FaultError(
            f"the recording has {len(alike)} models of this structure, none of which is this"
            " object: pass the object that ran, or record them apart"
        )
    if not alike:
        raise FaultError(
            "the recording has forwards of other models only, with other layers or weights of"
            " other shapes: pass the model that was recorded"
        )
    return alike


def _number(model: torch.nn.Module) -> str:
    # Not counted: a recording may be looked at in another process, with models of its own.
    return _own.setdefault(model, os.urandom(4).hex())


def _structure(found: Iterable[Layer]) -> str:
    lines = [f"{x.name}|{x.type}|{[(r, _shape(x, r)) for r in x.slots]}" for x in found]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:8]


def _shape(layer: Layer, role: str) -> str:
    try:
        tensor = layer.slots[role].open()
    except FaultError:  # lazy: it has no shape yet
        return ""
    return f"{tensor.dtype}{[*tensor.shape]}"
