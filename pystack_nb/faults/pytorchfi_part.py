"""A module within a corrupted model, by itself under the model's faults."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import nn

    from pystack_nb.faults.pytorchfi_corrupted import CorruptedModel


class CorruptedPart:
    """Passes for a module of a corrupted model: for its class, with all that it has.

    Calling it, or a method that the module's class has of its own, runs the module under the
    whole model's faults.  Hooks, ``train()`` and assignments are the original module's; its
    tensors are read with the faults that are in weights.  A module that runs several times in
    the model counts its calls from 0 when it is run alone.

    Parameters
    ----------
    whole : CorruptedModel
        Whose faults strike.
    module : torch.nn.Module
        Of the original model, or made of its modules.
    """

    __slots__ = ("_module", "_whole")

    def __init__(self, whole: CorruptedModel, module: nn.Module) -> None:
        object.__setattr__(self, "_whole", whole)
        object.__setattr__(self, "_module", module)

    @property  # type: ignore[misc]
    def __class__(self) -> type[nn.Module]:  # type: ignore[override]
        return type(self._module)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module under the faults."""
        with self._whole.applied():
            return self._module(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module's forward, without its hooks, under the faults."""
        with self._whole.applied():
            return self._module.forward(*args, **kwargs)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Give the module's state with the corrupted weights in it."""
        with self._whole.applied():
            state: dict[str, Any] = self._module.state_dict(*args, **kwargs)
        return state

    def __getattr__(self, name: str) -> Any:
        return self._whole.look(self._module, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._module, name, value)

    def __len__(self) -> int:
        module: Any = self._module
        return len(module)

    def __bool__(self) -> bool:
        return bool(self._module)

    def __iter__(self) -> Iterator[Any]:
        module: Any = self._module
        return (self._whole.part(item) for item in module)

    def __getitem__(self, key: Any) -> Any:
        module: Any = self._module
        return self._whole.part(module[key])

    def __repr__(self) -> str:
        return repr(self._module)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return CorruptedPart, (self._whole, self._module)
