"""Which forward of a model runs, in which call of a layer, as seen by the layers' hooks."""

from __future__ import annotations

import itertools
import sys
import threading

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch


if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

_CALL = torch.nn.Module._call_impl.__code__  # noqa: SLF001 - what runs the hooks


class Hook:
    """A hook that the copies of a module do not take with them.

    A model that is copied, pickled or saved while it is hooked gives one whose hooks do
    nothing; nobody could take them away from it.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *given: Any) -> Any:
        """Run the hook."""
        return self._function(*given)

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., None]:
        return nothing

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[()]]:
        return _nothing, ()


def unhook(module: torch.nn.Module, hook: Callable[..., Any]) -> None:
    """Take a hook of its forwards away from a module, if it is there.

    Not by the handle that torch gives for it: an interrupt may come between the two.
    """
    # torch keeps what else it knows of hooks by the same numbers.
    kinds: list[list[dict[int, Any]]] = [
        [module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs],  # noqa: SLF001
        [
            module._forward_hooks,  # noqa: SLF001
            module._forward_hooks_with_kwargs,  # noqa: SLF001
            module._forward_hooks_always_called,  # noqa: SLF001
        ],
    ]
    for hooks, *more in kinds:
        for number in [number for number, held in hooks.items() if held is hook]:
            for known in (hooks, *more):
                known.pop(number, None)


def nothing(*_: Any) -> None:
    """Do nothing, in the place of a hook."""


def _nothing() -> Callable[..., None]:
    return nothing


class Call(NamedTuple):
    """A forward of one layer: which of it within one of the model, and the frame that runs it."""

    module: torch.nn.Module
    number: int
    frame: FrameType | None


@dataclass
class Forward:
    """What runs in one thread.

    Attributes
    ----------
    number : int
        Of the model's forward, counted over all threads.
    stack : list of Call
        Those that have begun and not ended, the innermost last.
    undo : list of callable
        What is to be done when the forward ends, however it does, the last one first.
    """

    number: int = -1
    stack: list[Call] = field(default_factory=list)
    undo: list[Callable[[], None]] = field(default_factory=list)
    _calls: dict[torch.nn.Module, int] = field(default_factory=dict)

    @property
    def is_outermost(self) -> bool:
        """Whether the layer that runs is the first of its forward."""
        return len(self.stack) == 1

    def begin(self, module: torch.nn.Module, frame: FrameType | None) -> None:
        """Note that a layer begins."""
        number = self._calls.get(module, 0)
        self._calls[module] = number + 1
        self.stack.append(Call(module, number, frame))

    def cut(self, length: int) -> None:
        """End all calls but the first ones."""
        del self.stack[length:]
        if not self.stack:
            self._calls.clear()
            while self.undo:
                # Forgotten when done: what an interrupt breaks off is done by the next forward.
                self.undo[-1]()
                self.undo.pop()


class Forwards:
    """The forwards of a model in all threads."""

    def __init__(self) -> None:
        self._threads: dict[int, Forward] = {}
        self._numbers = itertools.count()

    def begin(self, module: torch.nn.Module) -> Forward:
        """Note that a layer begins, within the forward that runs here or in a new one."""
        forward = self._threads.setdefault(threading.get_ident(), Forward())
        frame = _call_frame()
        # torch runs no hook after a KeyboardInterrupt: what was broken off has left no word,
        # but the frame that ran it is none of those that run now.
        alive = len(forward.stack)
        while alive and not _runs_within(frame, forward.stack[alive - 1].frame):
            alive -= 1
        forward.cut(alive)
        if not alive:
            forward.number = next(self._numbers)
        forward.begin(module, frame)
        return forward

    def running(self, module: torch.nn.Module) -> Forward | None:
        """Give the forward in which a layer ends now, as the last that runs; None if unknown."""
        forward = self._threads.get(threading.get_ident())
        frame = _call_frame()
        for place in range(len(forward.stack) if forward else 0, 0, -1):
            call = forward.stack[place - 1]  # type: ignore[union-attr]
            if call.module is module and call.frame is frame:
                forward.cut(place)  # type: ignore[union-attr]
                return forward
        return None

    def end_all(self) -> None:
        """End what was broken off."""
        for forward in self._threads.values():
            forward.cut(0)


def _call_frame() -> FrameType | None:
    """Give the frame of torch that runs the module whose hook asks."""
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - the inspect module does the same
    while frame is not None and frame.f_code is not _CALL:
        frame = frame.f_back
    return frame


def _runs_within(frame: FrameType | None, outer: FrameType | None) -> bool:
    while frame is not None and frame is not outer:
        frame = frame.f_back
    return frame is outer
