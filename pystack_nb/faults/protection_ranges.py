"""Protections that look at a layer's numbers: range restriction, and finding NaN and infinity."""

from __future__ import annotations

import math

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import torch

from torch import nn

from pystack_nb.errors import FaultError
from pystack_nb.faults import structures
from pystack_nb.faults.data import on_device_of, tensors
from pystack_nb.faults.protection_guards import Defence, Guard, check_action, floats
from pystack_nb.faults.state import untouched


if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pystack_nb.faults.layers import Layer

# What stands between layers that compute: their outputs are bounded, or meant to be.
_ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU),
    *(nn.SiLU, nn.Mish, nn.Softplus, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid),
    *(nn.Tanh, nn.Softsign, nn.LogSigmoid, nn.Tanhshrink, nn.Softshrink, nn.Hardshrink),
)
_SHOWN = 8  # layers that an error names


@dataclass(frozen=True)
class Ranger(Defence):
    """Restricts the outputs of activation layers to the range that they have on good data.

    A number beyond it becomes the bound that it exceeds, so that a fault's large deviation
    ends at the first activation behind it; what stays within goes on.  Logits behind the last
    activation are not protected.

    Parameters
    ----------
    bounds : mapping of str to (float, float)
        The smallest and the largest number of each guarded layer; see `profile`.
    nan : float or None
        What NaN becomes; None lets it pass.

    Notes
    -----
    Z. Chen, G. Li, K. Pattabiraman, "A Low-cost Fault Corrector for Deep Neural Networks
    through Range Restriction", DSN 2021, https://arxiv.org/abs/2003.13874.
    """

    bounds: Mapping[str, tuple[float, float]]
    nan: float | None = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.bounds, Mapping):
            raise FaultError(
                f"bounds are a {type(self.bounds).__name__}: give a dict of (low, high) by the"
                " names of layers, or Ranger.profile(model, data)"
            )
        for layer, (low, high) in self.bounds.items():
            if not low <= high:
                raise FaultError(
                    f"the bounds {low} and {high} of {layer!r} are no range: swap them"
                )

    @classmethod
    def profile(
        cls,
        model: nn.Module,
        data: Any,
        *,
        layers: Sequence[str] | None = None,
        nan: float | None = 0.0,
        margin: float = 1e-5,
        batch_size: int = 64,
    ) -> Self:
        """Find the bounds by running a model on good data.

        Parameters
        ----------
        model : torch.nn.Module
            In the mode that it will be used in; it is left as it was.
        data : tuple, tensor, Dataset, DataLoader or list
            Samples, as for `Campaign`; labels are not looked at.
        layers : sequence of str, optional
            Which to guard; every activation module if none is named.
        nan : float or None
            As for the class.
        margin : float
            By what share of itself a bound is moved outwards: the same data in batches of
            another size is rounded otherwise.
        batch_size : int
            Samples in a forward.

        Raises
        ------
        FaultError
            If there is no such layer, none of them runs, or the model itself gives NaN.
        CampaignError
            If the data holds no samples, or nothing is computed on its device.
        """
        inputs, _ = tensors(data)
        bounds: dict[str, tuple[float, float]] = {}

        def note(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any, output: Any) -> None:
                del module, args
                for tensor in floats(output).values():
                    low, high = (x.item() for x in torch.aminmax(tensor))
                    if math.isnan(low):
                        raise FaultError(f"layer {name!r} gives NaN on this data: give good data")
                    old = bounds.get(name, (low, high))
                    bounds[name] = min(low, old[0]), max(high, old[1])

            return hook

        guarded = _Profiled(layers).layers_of(model)
        handles = [layer.module.register_forward_hook(note(layer.name)) for layer in guarded]
        try:
            with untouched(model), torch.no_grad():
                for start in range(0, len(inputs[0]), batch_size):
                    # Copies: a model may overwrite what it is given.
                    some = slice(start, start + batch_size)
                    batch = inputs.each(lambda x, some=some: x[some].clone())  # type: ignore[misc]
                    on_device_of(model, batch).given_to(model)
        finally:
            for handle in handles:
                handle.remove()
        if not bounds:
            names = ", ".join(repr(layer.name) for layer in guarded[:_SHOWN])
            more = f" and {len(guarded) - _SHOWN} more" if len(guarded) > _SHOWN else ""
            raise FaultError(
                f"none of the layers {names}{more} runs on this data: name others by layers=[...]"
            )
        wider = {
            name: (low - margin * abs(low), high + margin * abs(high))
            for name, (low, high) in bounds.items()
        }
        return cls(wider, nan)

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers that have bounds."""
        return tuple(self.bounds)

    def guard(self, layer: Layer) -> Guard:
        """Make what restricts a layer's outputs."""
        low, high = self.bounds[layer.name]
        return _Restrict(layer, low, high, self.nan)


@dataclass(frozen=True)
class _Profiled(Defence):
    layers: Sequence[str] | None
    title = "Ranger"
    kinds = _ACTIVATIONS

    def guard(self, layer: Layer) -> Guard:
        raise NotImplementedError


class _Restrict(Guard):
    def __init__(self, layer: Layer, low: float, high: float, nan: float | None) -> None:
        super().__init__(layer)
        self._low, self._high, self._nan = low, high, nan

    def after(self, output: Any, kept: Any, again: Callable[[], Any]) -> Any:
        del kept, again
        for path, tensor in floats(output).items():
            if not tensor.is_cuda:
                # A GPU would have to be waited for; a processor is quicker to look first.
                low, high = torch.aminmax(tensor.detach())
                if low.item() >= self._low and high.item() <= self._high:
                    continue
            right = tensor.clamp(self._low, self._high)
            if self._nan is not None:
                right = torch.where(tensor.isnan(), self._nan, right)
            wrong = (right != tensor) & ~(right.isnan() & tensor.isnan())
            count = wrong.sum()
            self.count(corrections=count, detections=count > 0)
            output = structures.replaced(output, path, right)
        return output


@dataclass(frozen=True)
class NanDetector(Defence):
    """Finds NaN and infinite numbers in the outputs of layers.

    What would end as a number that looks like one, or as no answer, ends as a detected fault
    at the layer behind which it appears.  On a GPU each look waits for the layer.

    Parameters
    ----------
    layers : sequence of str, optional
        Which to watch; the innermost ones if none is named.  Leave out those that give
        infinity on purpose (masks).
    action : {"raise", "record"}
        Raise `FaultDetectedError`, or count and go on.
    """

    layers: Sequence[str] | None = None
    action: str = "raise"

    def __post_init__(self) -> None:
        check_action(self, self.action, ("raise", "record"))

    def guard(self, layer: Layer) -> Guard:
        """Make what looks at a layer's outputs."""
        return _Finite(layer, self.action)


class _Finite(Guard):
    def __init__(self, layer: Layer, action: str) -> None:
        super().__init__(layer)
        self._action = action

    def after(self, output: Any, kept: Any, again: Callable[[], Any]) -> Any:
        del kept, again
        for tensor in floats(output).values():
            # One pass: NaN makes both of them NaN, an infinity is one of them.
            low, high = torch.aminmax(tensor.detach())
            if self._action == "record" and tensor.is_cuda:
                # Nobody has to wait for it.
                self.count(detections=~(low.isfinite() & high.isfinite()))
            elif not (math.isfinite(low.item()) and math.isfinite(high.item())):
                self.count(detections=1)
                if self._action == "raise":
                    self.raise_detected("NaN or infinity")
        return output
