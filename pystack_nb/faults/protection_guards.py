"""What protections have in common: which layers they guard, and what they count."""

from __future__ import annotations

import threading

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from torch import nn

from pystack_nb.errors import FaultDetectedError, FaultError
from pystack_nb.faults import structures
from pystack_nb.faults.layers import HOLDERS, Layer, find, layers


if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ACTIONS = ("raise", "record", "correct")

_counting = threading.Lock()  # a model may run in several threads


class Guard(ABC):
    """Watches one layer for one defence, and counts.

    Attributes
    ----------
    layer : Layer
        Which one.
    checks : int
        Outputs looked at.
    detections, corrections : int or torch.Tensor
        Outputs that looked wrong; numbers (`Ranger`) or outputs that were put right.
    """

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        self.checks = 0
        self.detections: int | torch.Tensor = 0
        self.corrections: int | torch.Tensor = 0

    def before(self, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ARG002
        """Look at what the layer is given, before it runs.

        Returns
        -------
        object
            Given to `after` as ``kept``.
        """
        return None

    @abstractmethod
    def after(self, output: Any, kept: Any, again: Callable[[], Any]) -> Any:
        """Look at what the layer gave, after all faults.

        Parameters
        ----------
        output : object
            What it gave.
        kept : object
            What `before` returned.
        again : callable
            Runs the layer once more on the same input.

        Returns
        -------
        object
            What the model goes on with.
        """

    def count(self, **more: int | torch.Tensor) -> None:
        """Add to ``checks``, ``detections`` or ``corrections``."""
        with _counting:
            for name, number in more.items():
                setattr(self, name, getattr(self, name) + number)

    def raise_detected(self, what: str) -> None:
        """Say what was found, by an exception."""
        raise FaultDetectedError(
            f"{what} in layer {self.layer.name!r}: run this forward again; if it happens again,"
            " load the weights anew"
        )


@dataclass(frozen=True)
class Defence(ABC):
    """A way to find or to bound faults; `protect` puts it into a model.

    Attributes
    ----------
    kinds : tuple of type
        Of the modules that are guarded when no layers are named; the innermost ones if empty.
    """

    kinds: ClassVar[tuple[type[nn.Module], ...]] = ()

    @property
    def title(self) -> str:
        """What it is called in an error."""
        return type(self).__name__

    def layers_of(self, model: nn.Module) -> list[Layer]:
        """Give the layers to guard: those that were named, or else the usual ones.

        Raises
        ------
        FaultError
            If there are none, or a name stands where a list of them should.
        """
        found = layers(model)
        named: Sequence[str] | None = getattr(self, "layers", None)
        if isinstance(named, str):
            raise FaultError(f"layers={named!r} is one name: give a list of names, [{named!r}]")
        if named is not None:
            return [find(model, found, name) for name in named]
        usual = [layer for layer in found.values() if self.usual(layer.module)]
        if not usual:
            kinds = ", ".join(kind.__name__ for kind in self.kinds) or "those that run no others"
            raise FaultError(
                f"{self.title} finds no layer of its kinds ({kinds}) in this model: name some by"
                " layers=[...], as in faults.sites(model, ...), or take another protection"
            )
        return usual

    def usual(self, module: nn.Module) -> bool:
        """Tell whether a module is guarded when no layers are named."""
        return isinstance(module, self.kinds) if self.kinds else innermost(module)

    @abstractmethod
    def guard(self, layer: Layer) -> Guard:
        """Make what watches a layer."""


def innermost(module: nn.Module) -> bool:
    """Tell whether a module runs no other ones."""
    inner = [name for name, _ in module.named_children() if name not in HOLDERS]
    return not inner or isinstance(module, nn.MultiheadAttention)


def check_action(defence: object, action: str, among: Sequence[str] = ACTIONS) -> None:
    """Refuse an action that a defence has not got."""
    if action not in among:
        raise FaultError(
            f"{type(defence).__name__} knows no action {action!r}: choose among {', '.join(among)}"
        )


def floats(output: Any) -> dict[structures.Path, torch.Tensor]:
    """Give the floating tensors, with a number in them, of what a layer gave."""
    if type(output) is torch.Tensor:
        found: Any = [((), output)]
    else:
        paths = structures.outputs(output).values()
        found = ((path, structures.get(output, path)) for path in paths)
    return {path: x for path, x in found if x.is_floating_point() and x.numel()}
