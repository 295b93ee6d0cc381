"""The stored bits of tensors: look at them, flip them, put them back.

Everything here works on the bits that memory holds, whatever they mean: 0 is the least
significant bit, NaN payloads and the sign of zero survive, and no value is ever rounded.
"""

from __future__ import annotations

import operator

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pystack_nb.errors import FaultError


if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Masks = NDArray[np.uint64]


def _present(**known: Any) -> dict[torch.dtype, Any]:
    # float8_e8m0fnu came with torch 2.7, and quantised types are going to leave it.
    return {getattr(torch, name): fact for name, fact in known.items() if hasattr(torch, name)}


# Bits of the mantissa, of the exponent; the sign is above them. Sources: IEEE
# 754-2019; for bfloat16 the upper half of a float32; https://arxiv.org/abs/2209.05433 for
# those of eight bits.
_FLOATS: dict[torch.dtype, tuple[int, int]] = _present(
    float16=(10, 5),
    float32=(23, 8),
    bfloat16=(7, 8),
    float8_e4m3fn=(3, 4),
    float8_e5m2=(2, 5),
    float8_e4m3fnuz=(3, 4),
    float8_e5m2fnuz=(2, 5),
    float64=(52, 11),
)
# An exponent and nothing else: the scale of a block in the OCP microscaling formats, v1.0.
_EXPONENTS: dict[torch.dtype, int] = _present(float8_e8m0fnu=8)
_SIGNED: dict[torch.dtype, int] = _present(int8=8, int16=16, int32=32, int64=64, qint8=8, qint32=32)
_UNSIGNED: dict[torch.dtype, int] = _present(
    bool=1, uint8=8, uint16=16, uint32=32, uint64=64, quint8=8
)
# The codes of quantised types: lowest, highest, and the integer type that holds them.
QUANTISED: dict[torch.dtype, tuple[int, int, torch.dtype]] = _present(
    qint8=(-128, 127, torch.int8),
    quint8=(0, 255, torch.uint8),
    qint32=(-(2**31), 2**31 - 1, torch.int32),
)
_STORED = {1: torch.uint8, 8: torch.uint8, 16: torch.int16, 32: torch.int32, 64: torch.int64}
_NUMPY: dict[torch.dtype, type[np.integer[Any]]] = {
    torch.uint8: np.uint8,
    torch.int16: np.int16,
    torch.int32: np.int32,
    torch.int64: np.int64,
}


def width(dtype: torch.dtype) -> int:
    """Give the number of stored bits of an element that a fault can strike.

    Parameters
    ----------
    dtype : torch.dtype
        A floating, integer, quantised or boolean type.  Of a boolean's byte only the lowest
        bit counts: any other one would make a value that is neither true nor false.

    Raises
    ------
    FaultError
        For complex and other types, such as those that pack several elements into a byte.
    """
    if dtype in _FLOATS:
        return 1 + sum(_FLOATS[dtype])
    known = _SIGNED.get(dtype) or _UNSIGNED.get(dtype) or _EXPONENTS.get(dtype)
    if known is None:
        instead = (
            "give torch.view_as_real(tensor), which shares its memory"
            if dtype.is_complex
            else "give a floating, integer, boolean or 8-bit quantised tensor"
        )
        raise FaultError(f"the bits of {dtype} are not described here: {instead}")
    return known


def fields(dtype: torch.dtype) -> dict[str, range]:
    """Give the bits of each field of a stored element.

    Parameters
    ----------
    dtype : torch.dtype
        As for `width`.

    Returns
    -------
    dict of str to range
        ``sign``, ``exponent`` and ``mantissa`` of floating types (``float8_e8m0fnu`` has its
        exponent alone); ``sign`` and
        ``magnitude`` of signed integers (two's complement); else ``magnitude``.
    """
    bits = width(dtype)
    if dtype in _FLOATS:
        mantissa = _FLOATS[dtype][0]
        return {
            "sign": range(bits - 1, bits),
            "exponent": range(mantissa, bits - 1),
            "mantissa": range(mantissa),
        }
    if dtype in _EXPONENTS:
        return {"exponent": range(bits)}
    if dtype in _SIGNED:
        return {"sign": range(bits - 1, bits), "magnitude": range(bits - 1)}
    return {"magnitude": range(bits)}


def stored_dtype(dtype: torch.dtype) -> torch.dtype:
    """Give the integer type as which `stored` shows elements of ``dtype``."""
    return _STORED[width(dtype)]


def stored(tensor: torch.Tensor) -> torch.Tensor:
    """View a tensor's memory as integers.

    Parameters
    ----------
    tensor : torch.Tensor
        Of any shape, strides and device; parameters that require gradients and quantised
        tensors too.

    Returns
    -------
    torch.Tensor
        Of the same shape and device, sharing the memory: what is written here is written
        there, without autograd noticing.  ``uint8`` for types of 8 bits and booleans,
        ``int16``, ``int32`` or ``int64`` for the others.

    Raises
    ------
    FaultError
        For types that `width` refuses, and tensors whose elements have no place in memory
        (sparse, meta, nested) or another value than memory has (lazily negated).
    """
    _check_is_tensor(tensor)
    dtype = stored_dtype(tensor.dtype)
    _check_is_held(tensor)
    if tensor.is_quantized:
        view = torch.empty(0, dtype=dtype, device=tensor.device)
        return view.set_(
            tensor.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride()
        )
    # Not `detach`: it shares the version counter, and a fault that comes and goes between a
    # forward and its backward would stop autograd.
    return tensor.data.view(dtype)


def flip_bit(tensor: torch.Tensor, index: int | tuple[int, ...], bit: int) -> None:
    """Flip one stored bit of one element, in place.

    Parameters
    ----------
    tensor : torch.Tensor
        Any tensor that `stored` takes, and complex ones.  Parameters that require gradients
        are changed, too, and autograd does not see it.
    index : int or tuple of int
        The element: one number for each dimension (``()`` for a tensor of none), from 0.
    bit : int
        0 is the least significant stored bit.  Of a complex number the lower half of the bits
        is its real part, and the upper half the imaginary one.

    Raises
    ------
    FaultError
        If the index or the bit is out of range, or several elements share the memory.

    Examples
    --------
    >>> x = torch.tensor([1.0])
    >>> flip_bit(x, 0, 31)
    >>> x
    tensor([-1.])
    """
    real = _as_real(tensor)
    view = own(real)
    where = check_index(index, tuple(tensor.shape))
    if real is tensor:
        number = check_bit(bit, tensor.dtype)
    else:
        each = width(real.dtype)
        part, number = divmod(_check_below(bit, 2 * each, tensor.dtype), each)
        where = (*where, part)
    view[where] ^= int(signed(np.array([1 << number], np.uint64), real.dtype)[0])


def _as_real(tensor: torch.Tensor) -> torch.Tensor:
    """View a complex tensor as pairs of numbers; give any other one as it is."""
    _check_is_tensor(tensor)
    if not tensor.is_complex():
        return tensor
    _check_is_held(tensor)
    if tensor.is_conj():
        raise FaultError(
            "this tensor is the conjugate of what its memory holds: give tensor.resolve_conj()"
        )
    return torch.view_as_real(tensor.data)


def _check_is_tensor(tensor: torch.Tensor) -> None:
    if not isinstance(tensor, torch.Tensor):
        raise FaultError(
            f"{type(tensor).__name__} is no torch.Tensor: give one, such as"
            " torch.from_numpy(array), which shares the array's memory"
        )
    if tensor.is_nested:
        raise FaultError(
            "a nested tensor has no shape that an index could count: give one of"
            " tensor.unbind(), which share its memory"
        )


def _check_is_held(tensor: torch.Tensor) -> None:
    if tensor.is_neg():
        raise FaultError(
            "this tensor is the negative of what its memory holds: give tensor.resolve_neg()"
        )
    if tensor.layout != torch.strided or tensor.device.type == "meta":
        raise FaultError(
            f"a tensor of layout {tensor.layout} on device {tensor.device} has no element"
            " that a fault could strike: give a dense tensor that is in memory"
        )


def flip(tensor: torch.Tensor, positions: NDArray[np.int64], masks: Masks) -> None:
    """Flip many bits of many elements at once, in place.

    Parameters
    ----------
    tensor : torch.Tensor
        As for `flip_bit`.
    positions : numpy.ndarray of int64, shape (n,)
        Flat indices in C order; one may occur several times.
    masks : numpy.ndarray of uint64, shape (n,)
        The bits to flip in each.
    """
    ones, zeros = np.full(len(masks), ~np.uint64(0)), np.zeros(len(masks), np.uint64)
    change(tensor, positions, ones, zeros, masks)


def change(
    tensor: torch.Tensor,
    positions: NDArray[np.int64],
    and_mask: Masks,
    or_mask: Masks,
    xor_mask: Masks,
) -> None:
    """Set each element's stored bits to ``((bits & and) | or) ^ xor``, in place.

    Parameters
    ----------
    tensor : torch.Tensor
        As for `flip_bit`.
    positions : numpy.ndarray of int64, shape (n,)
        Flat indices in C order.  Those that occur several times are changed several times,
        in the order given.
    and_mask, or_mask, xor_mask : numpy.ndarray of uint64, shape (n,)
        Bits above the type's width are ignored.
    """
    view = own(tensor)
    masks = [
        torch.from_numpy(signed(mask, tensor.dtype)).to(tensor.device)
        for mask in (and_mask, or_mask, xor_mask)
    ]
    for rows in rounds(positions):
        part, where = place(view, positions[rows])
        a, o, x = (mask[rows] for mask in masks)
        part[where] = ((part[where] & a) | o) ^ x


def read(tensor: torch.Tensor, positions: NDArray[np.int64]) -> Masks:
    """Give the stored bits of the elements at flat positions, as unsigned numbers."""
    view, where = place(stored(tensor), positions)
    return unsigned(view[where])


def unsigned(stored: torch.Tensor) -> Masks:
    """Give bits, as `stored` shows them, as unsigned numbers in this process's memory."""
    values = stored.cpu().numpy()
    numbers: Masks = values.view(np.dtype(f"u{values.itemsize}")).astype(np.uint64)
    return numbers


def write(tensor: torch.Tensor, positions: NDArray[np.int64], bits: Masks) -> None:
    """Put stored bits, as `read` gives them, to the elements at distinct flat positions."""
    view, where = place(own(tensor), positions)
    view[where] = torch.from_numpy(signed(bits, tensor.dtype)).to(tensor.device)


def bits_of(value: float, dtype: torch.dtype) -> int:
    """Give the stored bits of a number in a type, as an unsigned Python integer.

    Raises
    ------
    FaultError
        If an integer type can't hold the number.  In floating types it is rounded as torch
        rounds, and becomes infinite when it is too large.
    """
    bits = width(dtype)
    if not dtype.is_floating_point and not _holds(value, dtype):
        raise FaultError(f"{value!r} is no value of {dtype}: choose one that this type can hold")
    number = torch.tensor([value], dtype=dtype, device="cpu")
    return int(stored(number).item()) & ((1 << bits) - 1)


def value_of(bits: int, dtype: torch.dtype) -> float | int | bool:
    """Give the number that stored bits stand for.

    Parameters
    ----------
    bits : int
        Unsigned, below ``2 ** width(dtype)``.
    dtype : torch.dtype
        Not a quantised type: there the tensor's scale decides.

    Returns
    -------
    float, int or bool
        A Python number, exactly.
    """
    values = values_of(np.array([bits], np.uint64), dtype)
    number: float | int | bool = values[0]
    return number


def values_of(bits: Masks, dtype: torch.dtype) -> list[Any]:
    """Give the numbers that stored bits stand for, as Python numbers."""
    if dtype in QUANTISED:
        raise FaultError(
            f"bits of {dtype} have no value without a scale: ask for those of its integers"
        )
    numbers: list[Any] = torch.from_numpy(signed(bits, dtype)).view(dtype).tolist()
    return numbers


def signed(masks: Masks, dtype: torch.dtype) -> NDArray[Any]:
    """Give unsigned masks as numbers of the type as which `stored` shows ``dtype``."""
    to = np.dtype(_NUMPY[stored_dtype(dtype)])
    low = np.asarray(masks, np.uint64) & np.uint64((1 << width(dtype)) - 1)
    return low.astype(f"u{to.itemsize}").view(to)


def own(tensor: torch.Tensor) -> torch.Tensor:
    """View a tensor's stored bits for writing: each element must have memory of its own."""
    view = stored(tensor)
    if overlaps(view):
        raise FaultError(
            "several elements of this tensor share their memory, so that a fault in one would"
            " strike all of them: give tensor.contiguous()"
        )
    return view


def overlaps(tensor: torch.Tensor) -> bool:
    """Tell whether elements share memory, as in an expanded tensor or overlapping windows."""
    if not tensor.numel():
        return False
    sizes = sorted((s, n) for s, n in zip(tensor.stride(), tensor.shape, strict=True) if n > 1)
    reach = 0
    for step, size in sizes:
        if step <= reach:
            break
        reach += step * (size - 1)
    else:
        return False
    if sizes[0][0] == 0:
        return True
    # Interleaved strides may still never meet.
    offsets = np.zeros(1, np.int64)
    for step, size in sizes:
        offsets = np.add.outer(offsets, np.arange(size) * step).ravel()
    return len(np.unique(offsets)) < len(offsets)


def place(
    tensor: torch.Tensor, positions: NDArray[np.int64]
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """Turn flat positions in C order into a view of a tensor and an index into that view."""
    if len(positions) and not 0 <= positions.min() <= positions.max() < tensor.numel():
        raise FaultError(
            f"a position is out of range: give flat ones, from 0 to {tensor.numel() - 1}, for"
            f" shape {tuple(tensor.shape)}"
        )
    axes: list[NDArray[Any]]
    if tensor.is_contiguous():
        tensor, axes = tensor.view(-1), [positions]
    else:
        axes = [*np.unravel_index(positions, tuple(tensor.shape))]
    return tensor, tuple(
        torch.from_numpy(np.ascontiguousarray(axis)).to(tensor.device) for axis in axes
    )


def _holds(value: float, dtype: torch.dtype) -> bool:
    bits, is_signed = width(dtype), "sign" in fields(dtype)
    low = -(1 << bits - 1) if is_signed else 0
    # A comparison with NaN is false, whatever the sides.
    return low <= value < low + (1 << bits) and value == int(value)


def rounds(positions: NDArray[np.int64]) -> list[slice | NDArray[np.int64]]:
    """Split rows so that no position occurs twice in a part; earlier rows come first."""
    if (positions[1:] > positions[:-1]).all():
        return [slice(None)]
    order = np.argsort(positions, kind="stable")
    ordered = positions[order]
    first = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])[: len(ordered)])
    if len(first) == len(positions):
        return [slice(None)]
    sizes = np.diff(np.append(first, len(ordered)))
    rank = np.empty(len(positions), np.int64)
    rank[order] = np.arange(len(positions)) - np.repeat(first, sizes)
    return [np.flatnonzero(rank == number) for number in range(int(rank.max()) + 1)]


def check_index(index: int | Sequence[int], shape: tuple[int, ...]) -> tuple[int, ...]:
    """Make an index a tuple of numbers that are in range, or say what is wrong with it."""
    try:
        where = tuple(
            operator.index(i) for i in (index if isinstance(index, tuple | list) else (index,))
        )
    except TypeError:
        raise FaultError(
            f"{index!r} names no element: give one whole number for each dimension"
        ) from None
    if len(where) != len(shape):
        raise FaultError(
            f"index {where} has {len(where)} numbers and the tensor {len(shape)} dimensions:"
            f" give one number for each of {shape}"
        )
    for dim, (i, size) in enumerate(zip(where, shape, strict=True)):
        if not 0 <= i < size:
            raise FaultError(
                f"index {where} is out of range in dimension {dim} of shape {shape}: give a"
                f" number from 0 to {size - 1} there"
                if size
                else f"the tensor of shape {shape} has no element: choose another one"
            )
    return where


def check_bit(bit: int, dtype: torch.dtype) -> int:
    """Make a bit a Python integer that the type has, or say what is wrong with it."""
    return _check_below(bit, width(dtype), dtype)


def _check_below(bit: int, wide: int, dtype: torch.dtype) -> int:
    try:
        number = operator.index(bit)
    except TypeError:
        raise FaultError(f"{bit!r} is no bit: give a whole number") from None
    if not 0 <= number < wide:
        raise FaultError(
            f"{dtype} has no bit {number}: give one from 0 (least significant) to {wide - 1}"
        )
    return number
