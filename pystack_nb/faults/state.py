"""What forwards change in a model and around it, put back, and what they hang on, held."""

from __future__ import annotations

import random
import threading

from contextlib import ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pystack_nb.faults import bits
from pystack_nb.faults.padding import padded


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_WANTED = {"benchmark": False, "deterministic": True}
_changing = threading.Lock()
_found: list[tuple[str, bool]] = []
_users: list[None] = []


@contextmanager
def untouched(model: torch.nn.Module, *, generators: bool = True) -> Iterator[None]:
    """Put a model's buffers and its modules' attributes back, whatever forwards made of them.

    Tensors get their numbers back, and places the objects that they held.  What another object
    keeps in itself, such as a list's elements, is not put back.  Meanwhile encoders make no
    nested tensors (`padded`).

    Parameters
    ----------
    model : torch.nn.Module
    generators : bool, optional
        Also put back Python's, NumPy's and torch's global generators of random numbers.
    """
    with padded(model), _generators_kept() if generators else nullcontext():
        held = [
            (own, dict(own))
            for module in model.modules()
            for own in (module.__dict__, module._buffers)  # noqa: SLF001
        ]
        tensors = {
            id(x): x
            for _, at_first in held
            for x in at_first.values()
            if isinstance(x, torch.Tensor)
            and x.layout is torch.strided
            and not x.is_nested
            and not bits.overlaps(x)
        }
        saved = [(x, x.detach().clone()) for x in tensors.values()]
        with at_the_end(_put_back, saved, held):
            yield


@contextmanager
def at_the_end(function: Callable[..., None], *given: Any) -> Iterator[None]:
    """Call a function at the end, and again in case that an interrupt came."""
    with ExitStack() as undo:
        for _ in range(2):
            undo.callback(function, *given)
        yield


def _put_back(
    saved: list[tuple[torch.Tensor, torch.Tensor]],
    held: list[tuple[dict[str, Any], dict[str, Any]]],
) -> None:
    # Each is forgotten when it is done, and not before.
    with torch.inference_mode():
        while saved:
            tensor, before = saved[-1]
            tensor.data.copy_(before)
            saved.pop()
    while held:
        own, at_first = held[-1]
        same = len(own) == len(at_first)
        if not same or any(own.get(k) is not x for k, x in at_first.items()):
            own.clear()
            own.update(at_first)
        held.pop()


@contextmanager
def _generators_kept() -> Iterator[None]:
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002 - the global one
    cpu, accelerator = torch.get_rng_state(), accelerator_generators()

    def put_back() -> None:
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002 - the global one
        torch.set_rng_state(cpu)
        _set_accelerator_generators(accelerator)

    with at_the_end(put_back):
        yield


def accelerator_generators() -> list[torch.Tensor]:
    """Give the states of an accelerator's random generators, one for each device.

    Of an accelerator that is not in use there is none: to ask would set it up.
    """
    module = _accelerator_in_use()
    if hasattr(module, "get_rng_state_all"):
        return list(module.get_rng_state_all())
    # Apple's is a single device.
    return [module.get_rng_state()] if hasattr(module, "get_rng_state") else []


def _set_accelerator_generators(states: list[torch.Tensor]) -> None:
    if not states:
        return
    module = _accelerator_in_use()
    if hasattr(module, "set_rng_state_all"):
        module.set_rng_state_all(states)
    else:
        module.set_rng_state(*states)


def _accelerator_in_use() -> Any:
    """Give torch's module of the accelerator, as `torch.cuda`; None if it is not in use."""
    if (device := torch.accelerator.current_accelerator()) is None:
        return None
    module: Any = torch.get_device_module(device)
    # Apple's is always set up, where there is one.
    is_used = getattr(module, "is_initialized", torch.accelerator.is_available)
    return module if is_used() else None


@contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """Keep cuDNN from choosing its algorithms by chance or by what was quickest this time.

    Any number of these may be open, in any threads, and end in any order: the last one puts
    back what the first one found.
    """
    if device.type != "cuda":
        yield
        return
    flags = torch.backends.cudnn
    with _changing:
        if not _found:
            _found.extend((name, getattr(flags, name)) for name in _WANTED)
            for name, value in _WANTED.items():
                setattr(flags, name, value)
        _users.append(None)
    try:
        yield
    finally:
        with _changing:
            _users.pop()
            if not _users:
                for name, value in _found:
                    setattr(flags, name, value)
                _found.clear()
