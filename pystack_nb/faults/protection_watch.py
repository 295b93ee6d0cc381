"""Let guards see what a module is given and what it gives, after every fault."""

from __future__ import annotations

import functools
import threading

from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

from pystack_nb.faults.hooks import unhook


if TYPE_CHECKING:
    from collections import OrderedDict
    from collections.abc import Callable
    from contextlib import ExitStack

    from torch import nn

    from pystack_nb.faults.protection_guards import Guard

    Kept = list[tuple[Guard, Any]]

_watches: WeakKeyDictionary[nn.Module, _Watch] = WeakKeyDictionary()
_changing = threading.Lock()


def watch(module: nn.Module, guards: list[Guard], undo: ExitStack) -> None:
    """Show guards each forward of a module, until the stack is unwound.

    A module that several protections guard is watched once, so that they can end in any order;
    the one that came last looks first.  A copy of the module, or a pickled one, is unprotected.
    """
    for _ in ("once", "again where the first one was interrupted"):
        undo.callback(_leave, module, guards)
    with _changing:
        found = _watches.get(module)
        is_first = found is None
        if found is None:
            found = _watches[module] = _Watch(module)
        found.groups = (guards, *found.groups)
        if is_first:
            found.begin()


def _leave(module: nn.Module, guards: list[Guard]) -> None:
    with _changing:
        found = _watches.get(module)
        if found is None:
            return
        found.groups = tuple(group for group in found.groups if group is not guards)
        if not found.groups:
            found.remove()
            del _watches[module]


class _Open(threading.local):
    def __init__(self) -> None:
        self.forwards: list[Kept] = []


class _Watch:
    """A module's other ``forward``, which sees what hooks have left of its input, and a hook."""

    def __init__(self, module: nn.Module) -> None:
        self.groups: tuple[list[Guard], ...] = ()
        self._module = module
        self._open = _Open()
        self._own = module.__dict__.get("forward")
        self._plain: Callable[..., Any] = module.forward
        self._forward = _Forward(self, module, self._plain)

    def begin(self) -> None:
        """Watch.  If an interrupt comes, call `remove`."""
        self._hook = self._module.register_forward_hook(self, with_kwargs=True)
        self._module.__dict__["forward"] = self._forward

    def remove(self) -> None:
        """Leave the module as it was, but for what others have put there since.

        This may be called again, after it was interrupted.
        """
        unhook(self._module, self)
        held = self._module.__dict__
        if held.get("forward") is self._forward:
            if self._own is None:
                del held["forward"]
            else:
                held["forward"] = self._own

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the module's own forward, and keep what the guards will want to know."""
        if not self.groups:  # somebody else has kept this forward
            return self._plain(*args, **kwargs)
        # Faults that are injected from now on strike before the guards look: torch calls hooks
        # in the order of this dictionary, of which it makes a copy when this has returned.  Other
        # threads copy it, too, which the interpreter does in one step; and it changes only if a
        # hook has come since, which has changed it before.
        hooks = cast("OrderedDict[int, Any]", self._module._forward_hooks)  # noqa: SLF001
        if self._hook.id in hooks:
            hooks.move_to_end(self._hook.id)
        kept = [(x, x.before(self._plain, args, kwargs)) for group in self.groups for x in group]
        self._open.forwards.append(kept)
        try:
            return self._plain(*args, **kwargs)
        except BaseException:
            self._open.forwards.pop()
            raise

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        """Let the guards look at what the module gave: a forward hook."""
        del module
        if self._open.forwards:
            for guard, kept in self._open.forwards.pop():
                guard.count(checks=1)
                output = guard.after(output, kept, functools.partial(self._plain, *args, **kwargs))
        return output

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _unwatched, ()


class _Forward:
    def __init__(self, watch: _Watch, module: nn.Module, plain: Callable[..., Any]) -> None:
        functools.update_wrapper(self, plain)
        self._watch = watch
        self._module = module
        self._own = module.__dict__.get("forward")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._watch.run(args, kwargs)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        # A copy gets its own forward, since its module is copied first, and empty as yet.
        return (getattr, (self._module, "forward")) if self._own is None else (_same, (self._own,))


def _unwatched() -> Callable[..., None]:
    return _nothing


def _nothing(*_: Any) -> None:
    """Take the hook's place in a copy."""


def _same(value: Any) -> Any:
    return value
