"""Numbers in tensors at flat positions, those of quantised tensors included."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pystack_nb.errors import FaultError
from pystack_nb.faults import bits
from pystack_nb.faults.elements import Elements


if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pystack_nb.faults.bits import Masks


def take(tensor: torch.Tensor, positions: NDArray[np.int64]) -> torch.Tensor:
    """Copy the values at flat positions: shape (n,), on the tensor's device.

    Those of a quantised tensor come as float64 numbers.
    """
    view, where = bits.place(bits.stored(tensor), positions)
    return _numbers(tensor, positions, view[where])


def taken(elements: Elements) -> torch.Tensor:
    """Copy the values of elements, as `take` does."""
    return _numbers(elements.tensor, elements.positions, elements.read())


def put(tensor: torch.Tensor, positions: NDArray[np.int64], values: torch.Tensor) -> None:
    """Write values at distinct flat positions, rounded to what the type can hold.

    Integers are rounded to even and saturate; quantised values too, in the units of their
    scale.
    """
    put_at(Elements(tensor, positions), values)


def put_at(elements: Elements, values: torch.Tensor) -> None:
    """Write values of elements, as `put` does."""
    tensor, positions = elements.tensor, elements.positions
    values = values.to(tensor.device)
    if tensor.is_quantized:
        scale, zero = _scale(tensor, positions)
        low, high, held = bits.QUANTISED[tensor.dtype]
        units = _finite(values.double() / scale)
        # Embeddings have a zero point that is no whole number.
        rounded = units.round() + zero if _is_whole(tensor) else (units + zero).round()
        values = rounded.clamp(low, high).to(held)
    elif tensor.dtype == torch.bool:
        values = _finite(values) != 0
    elif tensor.dtype.is_floating_point:
        values = values.to(tensor.dtype)
    elif values.dtype.is_floating_point:
        # The largest 64-bit integers have no neighbour in float64 that is not beyond them.
        limits = torch.iinfo(tensor.dtype)
        rounded = _finite(values.double()).round().clamp(float(limits.min), float(limits.max))
        top = rounded >= float(limits.max)
        values = rounded.masked_fill(top, 0).to(tensor.dtype)
        most = torch.tensor(limits.max, dtype=tensor.dtype, device=tensor.device)
        values = torch.where(top, most, values)
    else:
        values = values.to(tensor.dtype)
    elements.write(values.view(bits.stored_dtype(tensor.dtype)))


def patterns(values: NDArray[Any], dtype: torch.dtype) -> Masks:
    """Give the stored bits of numbers in a type that is not quantised.

    Raises
    ------
    FaultError
        If an integer type can't hold one of them.
    """
    if not dtype.is_floating_point:
        distinct, place = np.unique(values, return_inverse=True)
        table = [bits.bits_of(number, dtype) for number in distinct.tolist()]
        return np.array(table, np.uint64)[place]
    tensor = torch.from_numpy(values.astype(np.float64)).to(dtype)
    return bits.read(tensor, np.arange(len(values)))


def numbers(tensor: torch.Tensor, positions: NDArray[np.int64]) -> list[Any]:
    """Give the values at flat positions as Python numbers."""
    listed: list[Any] = take(tensor, positions).tolist()
    return listed


def _numbers(
    tensor: torch.Tensor, positions: NDArray[np.int64], stored: torch.Tensor
) -> torch.Tensor:
    if not tensor.is_quantized:
        return stored.view(tensor.dtype)
    scale, zero = _scale(tensor, positions)
    return (stored.view(bits.QUANTISED[tensor.dtype][2]).double() - zero) * scale


def _finite(values: torch.Tensor) -> torch.Tensor:
    if values.dtype.is_floating_point and bool(values.isnan().any()):
        raise FaultError("NaN is no value of an integer type: choose a number")
    return values


def _is_whole(tensor: torch.Tensor) -> bool:
    return tensor.qscheme() != torch.per_channel_affine_float_qparams


def _scale(tensor: torch.Tensor, positions: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
    if tensor.qscheme() in {torch.per_tensor_affine, torch.per_tensor_symmetric}:
        scale = torch.tensor(tensor.q_scale(), dtype=torch.float64, device=tensor.device)
        return scale, torch.tensor(float(tensor.q_zero_point()), device=tensor.device)
    axis = np.unravel_index(positions, tuple(tensor.shape))[tensor.q_per_channel_axis()]
    channel = torch.from_numpy(np.ascontiguousarray(axis)).to(tensor.device)
    scales, zeros = tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points()
    return scales.double()[channel], zeros.double()[channel]
