"""Error models for neurons, by PyTorchFI's names.

Each function draws sites and values from Python's global `random`, in PyTorchFI's order, so
that a seed picks what it picked there, and declares them::

    import random

    from pystack_nb.faults import FaultInjection
    from pystack_nb.neuron_error_models import random_neuron_inj

    random.seed(7)
    pfi = FaultInjection(model, batch_size=4, input_shape=[3, 32, 32])
    corrupted = random_neuron_inj(pfi, min_val=-10, max_val=10)
    wrong, right = corrupted(images), model(images)

A random location is in a layer that is drawn first, each with the same chance however small
it is: rates found in this way overstate small layers. `faults.Campaign` draws sites uniformly.
"""

from __future__ import annotations

import math
import random

from typing import TYPE_CHECKING, Any

from pystack_nb.errors import FaultLocationError
from pystack_nb.faults import FaultInjection


if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from pystack_nb.faults.pytorchfi_corrupted import CorruptedModel

    Location = tuple[int, Any, Any, Any]


def random_value(min_val: float = -1, max_val: float = 1) -> float:
    """Draw a number uniformly from a range."""
    return random.uniform(min_val, max_val)  # noqa: S311 - PyTorchFI's generator


def random_batch_element(pfi: FaultInjection) -> int:
    """Draw a sample of the batch."""
    return random.randint(0, pfi.batch_size - 1)  # noqa: S311


def random_neuron_location(pfi: FaultInjection, layer: int = -1) -> Location:
    """Draw a neuron.

    Parameters
    ----------
    pfi : FaultInjection
        Whose layers are meant.
    layer : int
        Its layer's number; -1 draws it, too.

    Returns
    -------
    tuple
        Layer and three indices, None for dimensions that the layer's output hasn't got.
        The last one is a tuple where it has more than four.
    """
    if layer == -1:
        layer = random.randint(0, pfi.get_total_layers() - 1)  # noqa: S311
    drawn: list[Any] = [
        random.randint(0, size - 1)  # noqa: S311
        for size in pfi.get_layer_shape(layer)[1:]
    ]
    if len(drawn) > 3:
        drawn[2:] = [tuple(drawn[2:])]
    dim1, dim2, dim3 = [*drawn, None, None, None][:3]
    return layer, dim1, dim2, dim3


def random_neuron_inj(
    pfi: FaultInjection, min_val: float = -1, max_val: float = 1
) -> CorruptedModel:
    """Set one random neuron, in one random sample of the batch, to a random value.

    Parameters
    ----------
    pfi : FaultInjection
        Declares it.
    min_val, max_val : float
        The range of the value.

    Returns
    -------
    CorruptedModel
        As `FaultInjection.declare_neuron_fault_injection` gives it.
    """
    batch = random_batch_element(pfi)
    location = random_neuron_location(pfi)
    return _declare(pfi, [(batch, location)], [random_value(min_val, max_val)])


def random_neuron_inj_batched(
    pfi: FaultInjection,
    min_val: float = -1,
    max_val: float = 1,
    rand_loc: bool = True,
    rand_val: bool = True,
) -> CorruptedModel:
    """Set one random neuron in each sample of the batch to a random value.

    Parameters
    ----------
    pfi : FaultInjection
        Declares it.
    min_val, max_val : float
        The range of the values.
    rand_loc, rand_val : bool
        Whether each sample has a neuron, and a value, of its own.

    Returns
    -------
    CorruptedModel
        As `FaultInjection.declare_neuron_fault_injection` gives it.
    """
    location = None if rand_loc else random_neuron_location(pfi)
    value = None if rand_val else random_value(min_val, max_val)
    sites, values = [], []
    for batch in range(pfi.batch_size):
        sites.append((batch, location or random_neuron_location(pfi)))
        values.append(random_value(min_val, max_val) if value is None else value)
    return _declare(pfi, sites, values)


def random_inj_per_layer(
    pfi: FaultInjection, min_val: float = -1, max_val: float = 1
) -> CorruptedModel:
    """Set one random neuron of each layer, all in one random sample, to random values.

    Parameters
    ----------
    pfi : FaultInjection
        Declares it.
    min_val, max_val : float
        The range of the values.

    Returns
    -------
    CorruptedModel
        As `FaultInjection.declare_neuron_fault_injection` gives it.
    """
    batch = random_batch_element(pfi)
    sites, values = [], []
    for layer in range(pfi.get_total_layers()):
        sites.append((batch, random_neuron_location(pfi, layer)))
        values.append(random_value(min_val, max_val))
    return _declare(pfi, sites, values)


def random_inj_per_layer_batched(
    pfi: FaultInjection,
    min_val: float = -1,
    max_val: float = 1,
    rand_loc: bool = True,
    rand_val: bool = True,
) -> CorruptedModel:
    """Set one random neuron of each layer, in each sample of the batch, to a random value.

    Parameters
    ----------
    pfi : FaultInjection
        Declares it.
    min_val, max_val : float
        The range of the values.
    rand_loc, rand_val : bool
        Whether, in a layer, each sample has a neuron, and a value, of its own.

    Returns
    -------
    CorruptedModel
        As `FaultInjection.declare_neuron_fault_injection` gives it.
    """
    sites, values = [], []
    for layer in range(pfi.get_total_layers()):
        location = None if rand_loc else random_neuron_location(pfi, layer)
        value = None if rand_val else random_value(min_val, max_val)
        for batch in range(pfi.batch_size):
            sites.append((batch, location or random_neuron_location(pfi, layer)))
            values.append(random_value(min_val, max_val) if value is None else value)
    return _declare(pfi, sites, values)


class single_bit_flip_func(FaultInjection):  # noqa: N801 - PyTorchFI's name
    """Flips bits of neurons that are quantised for it, and made numbers again.

    The fault stands for an upset in an accelerator of whole numbers: the value is divided
    by its layer's range, cut to ``bits`` bits in two's complement, a bit flips, and what
    comes of it is multiplied by the range.  Even the lowest bit therefore rewrites the
    whole number.  For a flip of a stored bit of a float, see `faults.BitFlip`.  A value beyond
    the range is the largest or smallest that the bits can hold (PyTorchFI raised an
    error, or wrapped); NaN stays NaN.

    Parameters
    ----------
    model, batch_size, input_shape, **kwargs
        As for `FaultInjection`.
    bits : int
        How many there are, the sign included.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        batch_size: int,
        input_shape: list[int] | None = None,
        bits: int = 8,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, batch_size, input_shape, **kwargs)
        self.bits = bits
        self.layer_ranges: Sequence[float] = []

    @property
    def LayerRanges(self) -> Sequence[float]:  # noqa: N802 - the name of release 0.6.0
        """The largest absolute value of each layer's neurons."""
        return self.layer_ranges

    def set_conv_max(self, data: Sequence[float]) -> None:
        """Set the largest absolute value of each layer's neurons."""
        self.layer_ranges = data

    def reset_conv_max(self, data: Any = None) -> None:  # noqa: ARG002 - PyTorchFI's signature
        """Forget the ranges."""
        self.layer_ranges = []

    def get_conv_max(self, layer: int) -> float:
        """Give the largest absolute value of a layer's neurons.

        Raises
        ------
        FaultLocationError
            If there are fewer ranges, or this one isn't positive.
        """
        if layer >= len(self.layer_ranges) or not self.layer_ranges[layer] > 0:
            raise FaultLocationError(
                f"layer {layer} has no range above 0: give set_conv_max one for each of the"
                f" {self.get_total_layers()} layers"
            )
        return self.layer_ranges[layer]

    def single_bit_flip_signed_across_batch(
        self,
        module: torch.nn.Module,  # noqa: ARG002 - a forward hook's signature
        input_val: Any,  # noqa: ARG002
        output: torch.Tensor,
    ) -> None:
        """Flip a random bit of each declared neuron of the layer that runs: a forward hook."""
        struck = self.corrupt_layer
        rows = range(len(struck)) if isinstance(struck, list) else None
        if rows is None:
            self.corrupt_layer = [struck]
            self.corrupt_batch = [self.corrupt_batch]
            self.corrupt_dim = [[dim] for dim in self.corrupt_dim]
            rows = range(1)
        for row in rows:
            if self.corrupt_layer[row] != self.current_layer:
                continue
            index = self.index_of(row, tuple(output.shape))
            bit = random.randint(0, self.bits - 1)  # noqa: S311
            limit = self.get_conv_max(self.current_layer)
            plain = output.detach()
            plain[index] = self._flip_bit_signed(plain[index], limit, bit)
        self.update_layer()
        if self.current_layer >= self.get_total_layers():
            self.reset_current_layer()

    @staticmethod
    def _twos_comp(val: int, bits: int) -> int:
        return val - (1 << bits) if val & (1 << (bits - 1)) else val

    def _twos_comp_shifted(self, val: int, nbits: int) -> int:
        return (1 << nbits) + val if val < 0 else self._twos_comp(val, nbits)

    def _flip_bit_signed(
        self, orig_value: torch.Tensor, max_value: float, bit_pos: int
    ) -> torch.Tensor:
        if not 0 <= bit_pos < self.bits:
            raise FaultLocationError(
                f"there is no bit {bit_pos} of {self.bits}: give one from 0 to {self.bits - 1}"
            )
        scale = 2.0 ** (self.bits - 1)
        level = float((orig_value / max_value) * scale)
        if math.isnan(level):
            return orig_value.clone()
        quantum = int(min(max(level, -scale), scale - 1))
        flipped = (quantum & ((1 << self.bits) - 1)) ^ (1 << bit_pos)
        value = self._twos_comp(flipped, self.bits) * (max_value / scale)
        return orig_value.new_tensor(value)


def random_neuron_single_bit_inj_batched(
    pfi: single_bit_flip_func,
    layer_ranges: Sequence[float],
    batch_random: bool = True,
    rand_loc: bool | None = None,
) -> CorruptedModel:
    """Flip one random bit of one random, quantised neuron in each sample of the batch.

    Parameters
    ----------
    pfi : single_bit_flip_func
        Declares it; the bit is drawn when the model runs.
    layer_ranges : sequence of float
        The largest absolute value of each layer's neurons.
    batch_random : bool
        Whether each sample has a neuron of its own.
    rand_loc : bool, optional
        The name of ``batch_random`` in release 0.6.0.

    Returns
    -------
    CorruptedModel
        As `FaultInjection.declare_neuron_fault_injection` gives it.
    """
    _flipping(pfi).set_conv_max(layer_ranges)
    each = batch_random if rand_loc is None else rand_loc
    location = None if each else random_neuron_location(pfi)
    sites = [(b, location or random_neuron_location(pfi)) for b in range(pfi.batch_size)]
    return _declare(pfi, sites, None)


def random_neuron_single_bit_inj(
    pfi: single_bit_flip_func, layer_ranges: Sequence[float]
) -> CorruptedModel:
    """Flip one random bit of one random, quantised neuron in one random sample of the batch.

    Parameters
    ----------
    pfi : single_bit_flip_func
        Declares it; the bit is drawn when the model runs.
    layer_ranges : sequence of float
        The largest absolute value of each layer's neurons.

    Returns
    -------
    CorruptedModel
        As `FaultInjection.declare_neuron_fault_injection` gives it.
    """
    _flipping(pfi).set_conv_max(layer_ranges)
    batch = random_batch_element(pfi)
    return _declare(pfi, [(batch, random_neuron_location(pfi))], None)


def _declare(
    pfi: FaultInjection, sites: list[tuple[int, Location]], values: list[float] | None
) -> CorruptedModel:
    places: dict[str, Any] = {
        "batch": [batch for batch, _ in sites],
        **{
            name: [location[i] for _, location in sites]
            for i, name in enumerate(("layer_num", "dim1", "dim2", "dim3"))
        },
    }
    if values is not None:
        return pfi.declare_neuron_fault_injection(**places, value=values)
    function = _flipping(pfi).single_bit_flip_signed_across_batch
    return pfi.declare_neuron_fault_injection(**places, function=function)


def _flipping(pfi: FaultInjection) -> single_bit_flip_func:
    if not isinstance(pfi, single_bit_flip_func):
        raise FaultLocationError("bits are flipped by a single_bit_flip_func: make one of those")
    return pfi
