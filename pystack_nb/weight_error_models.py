"""Error models for weights, by PyTorchFI's names.

Each function draws sites and values from Python's global `random`, in PyTorchFI's order, so
that a seed picks what it picked there, and declares them::

    import random

    from torch import nn

    from pystack_nb.faults import FaultInjection
    from pystack_nb.weight_error_models import random_weight_inj

    random.seed(7)
    pfi = FaultInjection(
        model, batch_size=4, input_shape=[3, 32, 32], layer_types=[nn.Conv2d, nn.Linear]
    )
    corrupted = random_weight_inj(pfi, min_val=-10, max_val=10)
    wrong, right = corrupted(images), model(images)

A random location is in a layer that is drawn first, each with the same chance however small
it is: rates found in this way overstate small layers. `faults.Campaign` draws sites uniformly.
"""

from __future__ import annotations

import random

from typing import TYPE_CHECKING, Any

import numpy as np

from pystack_nb.errors import FaultLocationError
from pystack_nb.neuron_error_models import random_value


if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from pystack_nb.faults import FaultInjection
    from pystack_nb.faults.pytorchfi_corrupted import CorruptedModel

    Location = tuple[list[int], list[int], list[Any], list[Any], list[Any]]

__all__ = [
    "multi_weight_inj",
    "random_value",
    "random_weight_inj",
    "random_weight_location",
    "zero_func_rand_weight",
]


def random_weight_location(pfi: FaultInjection, layer: int = -1) -> Location:
    """Draw a weight.

    Parameters
    ----------
    pfi : FaultInjection
        Whose layers are meant.
    layer : int
        Its layer's number; -1 draws it, too, among those that have a weight.

    Returns
    -------
    tuple of list
        Layer and four indices, each in a list, None for dimensions that the weight hasn't
        got.  The last one is a tuple where it has more than four.
    """
    if layer == -1:
        layers = _weights(pfi)
        layer = layers[random.randint(0, len(layers) - 1)]  # noqa: S311 - PyTorchFI's generator
    drawn: list[Any] = [
        random.randint(0, size - 1)  # noqa: S311
        for size in pfi.get_weights_size(layer)
    ]
    if len(drawn) > 4:
        drawn[3:] = [tuple(drawn[3:])]
    k, dim1, dim2, dim3 = [*drawn, None, None, None][:4]
    return [layer], [k], [dim1], [dim2], [dim3]


def random_weight_inj(
    pfi: FaultInjection, corrupt_layer: int = -1, min_val: float = -1, max_val: float = 1
) -> CorruptedModel:
    """Set one random weight to a random value.

    Parameters
    ----------
    pfi : FaultInjection
        Declares it.
    corrupt_layer : int
        Its layer's number; -1 draws it, too.
    min_val, max_val : float
        The range of the value.

    Returns
    -------
    CorruptedModel
        As `FaultInjection.declare_weight_fault_injection` gives it.
    """
    location = random_weight_location(pfi, corrupt_layer)
    return _declare(pfi, location, value=[random_value(min_val, max_val)])


def zero_func_rand_weight(pfi: FaultInjection) -> CorruptedModel:
    """Set one random weight to zero.

    Parameters
    ----------
    pfi : FaultInjection
        Declares it.

    Returns
    -------
    CorruptedModel
        As `FaultInjection.declare_weight_fault_injection` gives it.
    """
    return _declare(pfi, random_weight_location(pfi), function=_zero_rand_weight)


def multi_weight_inj(
    pfi: FaultInjection,
    sdc_p: float = 1e-5,
    function: Callable[[torch.Tensor, Any], Any] | None = None,
) -> CorruptedModel:
    """Strike each weight of all layers with the same probability.

    Parameters
    ----------
    pfi : FaultInjection
        Declares it.
    sdc_p : float
        The probability, for each weight on its own.
    function : callable, optional
        Takes the weight and an index, and gives the wrong value; zero if there is none.

    Returns
    -------
    CorruptedModel
        As `FaultInjection.declare_weight_fault_injection` gives it.
    """
    columns: list[list[Any]] = [[], [], [], [], []]
    for layer in _weights(pfi):
        shape = tuple(pfi.get_weights_size(layer))
        struck = [i for i in range(int(np.prod(shape))) if random.random() < sdc_p]  # noqa: S311
        for flat in struck:
            index: list[Any] = [int(i) for i in np.unravel_index(flat, shape)]
            if len(index) > 4:
                index[3:] = [tuple(index[3:])]
            for column, number in zip(columns, [layer, *index, None, None, None], strict=False):
                column.append(number)
    layers, k, dim1, dim2, dim3 = columns
    return _declare(pfi, (layers, k, dim1, dim2, dim3), function=function or _zero_rand_weight)


def _weights(pfi: FaultInjection) -> list[int]:
    # A module that runs twice has two numbers and one weight; the first one stands for it.
    first = {layer.module: i for i, layer in reversed(list(enumerate(pfi.layers)))}
    numbers = sorted(i for i in first.values() if pfi.weights_size[i] is not None)
    if not numbers:
        raise FaultLocationError(
            "no layer has a weight: choose layer_types that have, such as [nn.Conv2d, nn.Linear]"
        )
    return numbers


def _zero_rand_weight(data: torch.Tensor, location: Any) -> torch.Tensor:
    return data[location] * 0


def _declare(pfi: FaultInjection, location: Location, **how: Any) -> CorruptedModel:
    layer, k, dim1, dim2, dim3 = location
    return pfi.declare_weight_fault_injection(
        layer_num=layer, k=k, dim1=dim1, dim2=dim2, dim3=dim3, **how
    )
