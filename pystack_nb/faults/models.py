"""Error models: what a fault does to the element that it strikes.

A model is drawn first (which bits, which value: from a random generator and the element's
type alone) and applied afterwards, so that a campaign can say beforehand what each of its
faults will do.
"""

from __future__ import annotations

import math

from abc import ABC, abstractmethod
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any, SupportsFloat

import numpy as np
import torch

from pystack_nb.errors import FaultError
from pystack_nb.faults import bits, values
from pystack_nb.faults.choice import Choice
from pystack_nb.faults.drawn import Drawn
from pystack_nb.faults.elements import Elements


if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Sequence as Listed

    from numpy.typing import NDArray

    from pystack_nb.faults.bits import Masks


__all__ = [
    "BitFlip",
    "BitModel",
    "Custom",
    "Drawn",
    "ErrorModel",
    "Noise",
    "RandomValue",
    "Replace",
    "Sequence",
    "StuckAt",
    "Zero",
    "lowest",
]


class ErrorModel(ABC):
    """What a fault does to an element; ``a + b`` does the one and then the other."""

    def __add__(self, other: ErrorModel) -> Sequence:
        return Sequence(self, other)

    @abstractmethod
    def draw(self, rng: np.random.Generator, dtype: torch.dtype, count: int) -> Drawn:
        """Draw what ``count`` faults do to elements of a type.

        Parameters
        ----------
        rng : numpy.random.Generator
            The only source of randomness.
        dtype : torch.dtype
            Of the elements.
        count : int
            Number of faults.

        Raises
        ------
        FaultError
            If elements of this type can't have such a fault.
        """

    def apply(self, tensor: torch.Tensor, positions: NDArray[np.int64], drawn: Drawn) -> None:
        """Change a tensor in place as drawn; see `change`, which is what models have of their own.

        Parameters
        ----------
        tensor : torch.Tensor
            Any tensor that `bits.stored` takes.
        positions : numpy.ndarray of int64, shape (n,)
            The elements' flat indices in C order, distinct.
        drawn : Drawn
            A row for each position, drawn for the tensor's type.
        """
        self.change(Elements(tensor, positions), drawn)

    def change(self, elements: Elements, drawn: Drawn) -> None:
        """Change elements in place as drawn, on their device.

        Parameters
        ----------
        elements : Elements
            What is struck.
        drawn : Drawn
            A row for each of them.
        """
        tensor = elements.tensor
        keep, force, turn = drawn.masks(tensor.dtype, tensor.device)
        elements.write(((elements.read() & keep) | force) ^ turn)
        written = ~np.isnan(drawn.value)
        if tensor.is_quantized and written.any():
            values.put(tensor, elements.positions[written], torch.from_numpy(drawn.value[written]))

    def faults_per_element(self, dtype: torch.dtype) -> float:
        """Give the number of different faults of this kind in one element.

        Returns
        -------
        int or float
            ``math.inf`` where a value is drawn from a range.
        """
        self.draw(np.random.default_rng(0), dtype, 1)
        return 1

    def reduces(self, dtype: torch.dtype) -> bool:  # noqa: ARG002 - some models look at it
        """Tell whether the masks and the value of a `Drawn` say all about these faults.

        Campaigns then evaluate many at a time; others have a forward each.
        """
        return True


class BitModel(ErrorModel):
    """An error model that strikes chosen stored bits."""

    bits: int
    bit: int | Listed[int] | None
    field: str | None
    burst: bool

    @abstractmethod
    def strike(self, masks: Masks) -> Drawn:
        """Give what striking the bits of each mask does."""

    @property
    def choice(self) -> Choice:
        """How the bits are chosen."""
        bit = self.bit
        try:
            chosen = bit if bit is None or isinstance(bit, int | np.integer) else tuple(bit)
        except TypeError:
            raise FaultError(f"bit={bit!r}: give a whole number, or several in a tuple") from None
        return Choice(self.bits, chosen, self.field, self.burst)

    def draw(self, rng: np.random.Generator, dtype: torch.dtype, count: int) -> Drawn:
        """Draw the bits that ``count`` faults strike; see `ErrorModel.draw`."""
        return self.strike(self.choice.masks(rng, dtype, count))

    def candidates(self, dtype: torch.dtype) -> tuple[int, ...]:
        """Give the bits of a type that this model may strike, ascending."""
        return self.choice.candidates(dtype)

    def faults_per_element(self, dtype: torch.dtype) -> int:
        """Give the number of different faults of this kind in one element."""
        return self.choice.count(dtype)


@dataclass(frozen=True, kw_only=True)
class BitFlip(BitModel):
    """Stored bits are inverted.

    The soft error: a particle or a voltage droop upsets memory cells, flip-flops or lines of
    a bus, which then hold the opposite.  One bit is the single event upset; several
    anywhere in a word, or a burst of neighbours, the multiple bit upset of one event.

    Parameters
    ----------
    bits : int
        How many distinct bits of an element are struck.
    bit : int or sequence of int, optional
        Which; without it they are drawn, each as likely as another.  All bits of a sequence
        are struck.
    field : {"sign", "exponent", "mantissa", "magnitude"}, optional
        Draw from this field only (``magnitude`` is an integer's part without its sign).
    burst : bool
        Strike ``bits`` adjacent bits; ``bit`` is then the lowest.

    Raises
    ------
    FaultError
        If this can't be, whatever the type; when drawn, if the type has no such bits.
    """

    bits: int = 1
    bit: int | Listed[int] | None = None
    field: str | None = None
    burst: bool = False

    def __post_init__(self) -> None:
        self.choice.check()

    def strike(self, masks: Masks) -> Drawn:
        """Invert the bits of each mask."""
        return Drawn.of(len(masks), xor_mask=masks, bit=lowest(masks))


@dataclass(frozen=True)
class StuckAt(BitModel):
    """Stored bits read 0, or 1, whatever is written.

    The hard error: a shorted, open or worn-out cell or line.  Where the bit already has
    that value nothing changes, and the fault is masked.

    Parameters
    ----------
    value : {0, 1}
        What the bits read.
    bits, bit, field, burst
        As for `BitFlip`.
    """

    value: int
    _: KW_ONLY
    bits: int = 1
    bit: int | Listed[int] | None = None
    field: str | None = None
    burst: bool = False

    def __post_init__(self) -> None:
        self.choice.check()
        if self.value not in {0, 1}:
            raise FaultError(f"a bit can't be stuck at {self.value!r}: give 0 or 1")

    def strike(self, masks: Masks) -> Drawn:
        """Force the bits of each mask."""
        forced = {"or_mask": masks} if self.value else {"and_mask": ~masks}
        return Drawn.of(len(masks), bit=lowest(masks), **forced)


@dataclass(frozen=True)
class Replace(ErrorModel):
    """The whole value is replaced by another.

    What a wrong word looks like that an address, a multiplexer or a corrected-wrongly error
    code delivers; and the classic fault of studies in software.

    Parameters
    ----------
    value : float
        In floating types rounded to the type, infinite beyond its range; NaN is allowed
        there.  An integer type must be able to hold it; quantised ones saturate.
    """

    value: float

    def __post_init__(self) -> None:
        _check_number(self.value, "value")

    def draw(self, rng: np.random.Generator, dtype: torch.dtype, count: int) -> Drawn:  # noqa: ARG002
        """Draw nothing: each fault is alike; see `ErrorModel.draw`."""
        return _written(np.full(count, self.value), dtype)


@dataclass(frozen=True)
class Zero(ErrorModel):
    """The value reads zero: a cell that lost its charge, a lane that is power-gated.

    In quantised tensors it is the number 0, whose code is the zero point.
    """

    def draw(self, rng: np.random.Generator, dtype: torch.dtype, count: int) -> Drawn:  # noqa: ARG002
        """Draw nothing: each fault is alike; see `ErrorModel.draw`."""
        return _written(np.zeros(count, np.int64), dtype)


@dataclass(frozen=True)
class RandomValue(ErrorModel):
    """The value is replaced by a random one, as by a control error that delivers another word.

    Parameters
    ----------
    low, high : float
        Uniform between them; in integer types both ends are included.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        _check_number(self.low, "low")
        _check_number(self.high, "high")
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low <= self.high):
            raise FaultError(
                f"no value lies between {self.low} and {self.high}: give two numbers, the"
                " smaller one first"
            )

    def draw(self, rng: np.random.Generator, dtype: torch.dtype, count: int) -> Drawn:
        """Draw ``count`` values; see `ErrorModel.draw`."""
        if dtype.is_floating_point or dtype in bits.QUANTISED:
            return _written(rng.uniform(self.low, self.high, count), dtype)
        low, high = math.ceil(self.low), math.floor(self.high)
        if low > high:
            raise FaultError(
                f"no whole number lies between {self.low} and {self.high}, and {dtype} holds"
                " no other: give a wider range"
            )
        return _written(rng.integers(low, high, count, endpoint=True), dtype)

    def faults_per_element(self, dtype: torch.dtype) -> float:
        """Give infinity: a range has no number of values."""
        super().faults_per_element(dtype)
        return math.inf


@dataclass(frozen=True)
class Noise(ErrorModel):
    """Normally distributed noise is added: analogue computing, reduced voltage, wear.

    Parameters
    ----------
    std : float
        Standard deviation.
    relative : bool
        In units of the value itself: ``x * (1 + std * n)`` instead of ``x + std * n``.
    """

    std: float
    relative: bool = False

    def __post_init__(self) -> None:
        _check_number(self.std, "std")
        if not (math.isfinite(self.std) and self.std >= 0):
            raise FaultError(f"no noise deviates by {self.std}: give a number from 0 on")

    def draw(self, rng: np.random.Generator, dtype: torch.dtype, count: int) -> Drawn:
        """Draw ``count`` standard normal numbers; see `ErrorModel.draw`."""
        bits.width(dtype)
        return Drawn.of(count, noise=rng.standard_normal(count))

    def change(self, elements: Elements, drawn: Drawn) -> None:
        """Add the noise in float64 and round to the tensor's type; see `ErrorModel.change`."""
        assert drawn.noise is not None  # noqa: S101 - it was drawn here
        old = values.taken(elements).double()
        noise = self.std * torch.from_numpy(drawn.noise).to(old.device)
        values.put_at(elements, old * (1 + noise) if self.relative else old + noise)

    def faults_per_element(self, dtype: torch.dtype) -> float:
        """Give infinity: noise has no number of values."""
        super().faults_per_element(dtype)
        return math.inf

    def reduces(self, dtype: torch.dtype) -> bool:  # noqa: ARG002
        """Tell that the masks do not: noise depends on the value."""
        return False


@dataclass(frozen=True)
class Custom(ErrorModel):
    """Whatever a function makes of the values.

    Parameters
    ----------
    function : callable
        ``function(values, rng) -> values``: a tensor of shape (n,) with the values struck
        (float64 for quantised tensors) and a `numpy.random.Generator`, to draw from it and
        nowhere else.  It gives a tensor, an array or a number; integers saturate.
    """

    function: Callable[[torch.Tensor, np.random.Generator], Any]

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise FaultError(f"{self.function!r} is no function: give one of (values, rng)")

    def draw(self, rng: np.random.Generator, dtype: torch.dtype, count: int) -> Drawn:
        """Draw a generator for the function; see `ErrorModel.draw`."""
        bits.width(dtype)
        return Drawn.of(count, rng=np.random.default_rng(rng.integers(2**63)))

    def change(self, elements: Elements, drawn: Drawn) -> None:
        """Write what the function gives; see `ErrorModel.change`."""
        assert drawn.rng is not None  # noqa: S101 - it was drawn here
        # A permanent fault is applied in each forward, and must do the same each time.
        rng = np.random.Generator(type(drawn.rng.bit_generator)())
        rng.bit_generator.state = drawn.rng.bit_generator.state
        count = len(elements.positions)
        made = self.function(values.taken(elements), rng)
        try:
            # A tensor stays where it is, whatever the default device is.
            new = made if isinstance(made, torch.Tensor) else torch.as_tensor(made, device="cpu")
        except (TypeError, ValueError, RuntimeError):
            raise FaultError(
                f"the function made {made!r}, which is no number: return the values"
            ) from None
        if new.is_complex():
            raise FaultError(f"the function made values of {new.dtype}: return real ones")
        try:
            new = new.detach().broadcast_to(count)
        except RuntimeError:
            raise FaultError(
                f"the function was given {count} values and made a tensor of shape"
                f" {tuple(new.shape)}: return as many as it is given"
            ) from None
        values.put_at(elements, new)

    def faults_per_element(self, dtype: torch.dtype) -> float:
        """Give infinity: nobody knows what the function does."""
        super().faults_per_element(dtype)
        return math.inf

    def reduces(self, dtype: torch.dtype) -> bool:  # noqa: ARG002
        """Tell that the masks do not: the function looks at the values."""
        return False


@dataclass(frozen=True, init=False)
class Sequence(ErrorModel):
    """Several models, one after the other, on the same element.

    Parameters
    ----------
    *models : ErrorModel
        At least one.
    """

    models: tuple[ErrorModel, ...]

    def __init__(self, *models: ErrorModel) -> None:
        flat = [m for model in models for m in getattr(model, "models", (model,))]
        strange = [model for model in flat if not isinstance(model, ErrorModel)]
        if strange or not flat:
            told = f", and {strange[0]!r:.60} is none" if strange else ""
            raise FaultError(
                f"a sequence is made of error models{told}: give one or more, such as"
                " BitFlip() + Zero()"
            )
        object.__setattr__(self, "models", tuple(flat))

    def draw(self, rng: np.random.Generator, dtype: torch.dtype, count: int) -> Drawn:
        """Draw each model in turn; see `ErrorModel.draw`."""
        parts = tuple(model.draw(rng, dtype, count) for model in self.models)
        if not self.reduces(dtype):
            return Drawn.of(count, parts=parts)
        merged = parts[0]
        for part in parts[1:]:
            merged = merged.then(part)
        return merged

    def change(self, elements: Elements, drawn: Drawn) -> None:
        """Let each model change them in turn; see `ErrorModel.change`."""
        if not drawn.parts:
            super().change(elements, drawn)
        for model, part in zip(self.models, drawn.parts, strict=False):
            model.change(elements, part)

    def faults_per_element(self, dtype: torch.dtype) -> float:
        """Give the number of combinations."""
        return math.prod(model.faults_per_element(dtype) for model in self.models)

    def reduces(self, dtype: torch.dtype) -> bool:
        """Tell whether all its models reduce to masks, so that it does."""
        if dtype in bits.QUANTISED:
            return all(isinstance(model, BitModel) for model in self.models)
        return all(model.reduces(dtype) for model in self.models)


def lowest(masks: Masks) -> NDArray[np.int64]:
    """Give the number of each mask's lowest bit, -1 for no bit."""
    isolated = masks & (~masks + np.uint64(1))
    # A power of two has an exact float64, whose exponent is one above the bit's number.
    return np.frexp(isolated.astype(np.float64))[1].astype(np.int64) - 1


def _check_number(number: object, name: str) -> None:
    if not isinstance(number, SupportsFloat):
        raise FaultError(f"{name}={number!r} is no number: give one, such as 0.5")


def _written(numbers: NDArray[Any], dtype: torch.dtype) -> Drawn:
    value = numbers.astype(np.float64)
    if dtype in bits.QUANTISED:
        if np.isnan(value).any():
            raise FaultError(f"NaN is no value of {dtype}: choose a number")
        return Drawn.of(len(value), value=value)
    none = np.zeros(len(value), np.uint64)
    stored = values.patterns(numbers, dtype)
    return Drawn.of(len(value), and_mask=none, xor_mask=stored, value=value)
