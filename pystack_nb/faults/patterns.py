"""Which elements of a tensor a fault strikes."""

from __future__ import annotations

import math
import operator

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, SupportsFloat

import numpy as np

from pystack_nb.errors import FaultError
from pystack_nb.faults.models import BitModel, ErrorModel


if TYPE_CHECKING:
    import torch

    from numpy.typing import NDArray

    from pystack_nb.faults.drawn import Drawn

    Positions = NDArray[np.int64]


@dataclass(frozen=True)
class Region:
    """The part of a tensor in which a fault may strike.

    Attributes
    ----------
    shape : tuple of int
        Of the whole tensor.
    channels : int
        The dimension of the channels.
    batch : int
        The dimension of the batch; it counts only where there is a sample.
    sample : int or None
        Strike this one's elements only.
    """

    shape: tuple[int, ...]
    channels: int
    batch: int = 0
    sample: int | None = None

    @classmethod
    def of(
        cls, shape: tuple[int, ...], *, weight: bool, batch: int = 0, sample: int | None = None
    ) -> Region:
        """Make that of a tensor whose channels are where they usually are."""
        return cls(shape, 0 if weight or len(shape) == 1 else 1, batch, sample)

    @property
    def free(self) -> tuple[int, ...]:
        """The shape of what may be struck."""
        return tuple(
            1 if self.sample is not None and dim == self.batch else size
            for dim, size in enumerate(self.shape)
        )

    @property
    def size(self) -> int:
        """Number of elements that may be struck."""
        return math.prod(self.free)

    def whole(self, flat: Positions) -> Positions:
        """Turn flat positions within `free` into those within the tensor."""
        if self.sample is None:
            return flat
        axes = [*np.unravel_index(flat, self.free)]
        axes[self.batch] = np.full(len(flat), self.sample)
        return np.asarray(np.ravel_multi_index(axes, self.shape), np.int64)


class Pattern(ABC):
    """Chooses the elements that a fault strikes together.

    Attributes
    ----------
    has_place : bool
        Whether the first element struck tells all the others.
    first_drawn : bool
        Whether which one that is hangs on chance.
    """

    has_place: ClassVar[bool] = False

    @property
    def first_drawn(self) -> bool:  # noqa: D102 - an attribute of the class
        return self.has_place

    @abstractmethod
    def elements(self, rng: np.random.Generator, region: Region) -> Positions:
        """Draw flat positions within ``region.free``, distinct."""

    def places(self, region: Region) -> int:
        """Give the number of places at which an event may hit: a campaign's population.

        Elements, unless the pattern says otherwise.
        """
        return region.size

    def first(self, rng: np.random.Generator, region: Region) -> int:
        """Draw as `elements` does, and give the first one; -1 if it does not tell the others."""
        return int(region.whole(self.elements(rng, region)[:1])[0]) if self.has_place else -1

    def counted(self, region: Region) -> int | None:  # noqa: ARG002
        """Give the dimension that the pattern is about, None if it is about none."""
        return None

    def draw(
        self, rng: np.random.Generator, region: Region, error: ErrorModel, dtype: torch.dtype
    ) -> tuple[Positions, Drawn]:
        """Draw the elements and what happens to each."""
        chosen = self.elements(rng, region)
        return region.whole(chosen), error.draw(rng, dtype, len(chosen))


@dataclass(frozen=True)
class Element(Pattern):
    """One element, each as likely as another: what ``index=None`` means."""

    has_place: ClassVar[bool] = True

    def elements(self, rng: np.random.Generator, region: Region) -> Positions:
        """Draw one; see `Pattern.elements`."""
        return _distinct(rng, region, 1)


@dataclass(frozen=True)
class Several(Pattern):
    """Several distinct elements anywhere in the tensor.

    Parameters
    ----------
    count : int
        How many.
    """

    count: int

    def __post_init__(self) -> None:
        if _whole(self.count, "count") < 1:
            raise FaultError(f"a fault can't strike {self.count} elements: give 1 or more")

    def elements(self, rng: np.random.Generator, region: Region) -> Positions:
        """Draw them; see `Pattern.elements`."""
        return _distinct(rng, region, self.count)


@dataclass(frozen=True)
class Channel(Pattern):
    """All elements of one channel: a broken lane or accumulator that computes it.

    Parameters
    ----------
    number : int, optional
        Which; drawn if it is left away.
    dim : int, optional
        The dimension that counts channels: 1 for activations (0 where they have only that),
        0 for weights, if it is left away.  ``-1`` suits activations of transformers.
    """

    number: int | None = None
    dim: int | None = None

    has_place: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("number", "dim"):
            if getattr(self, name) is not None:
                _whole(getattr(self, name), name)

    def elements(self, rng: np.random.Generator, region: Region) -> Positions:
        """Give the channel's elements; see `Pattern.elements`."""
        dim = self._dim(region)
        return _plane(region.free, {dim: self._drawn(rng, region, dim)})

    def first(self, rng: np.random.Generator, region: Region) -> int:
        """Draw the channel, and give its first element; see `Pattern.first`."""
        dim = self._dim(region)
        number = self._drawn(rng, region, dim)
        flat = number * math.prod(region.free[dim + 1 :])
        return int(region.whole(np.array([flat]))[0])

    def _drawn(self, rng: np.random.Generator, region: Region, dim: int) -> int:
        size = region.free[dim]
        _distinct(rng, region, 1)
        number = int(rng.integers(size)) if self.number is None else self.number
        if not 0 <= number < size:
            raise FaultError(
                f"there is no channel {number} in shape {region.shape}: give one from 0 to"
                f" {size - 1}"
            )
        return number

    def counted(self, region: Region) -> int:
        """Give the dimension that counts channels."""
        return self._dim(region)

    def places(self, region: Region) -> int:
        """Give the number of channels; 1 where one is chosen."""
        return region.free[self._dim(region)] if self.number is None else 1

    def _dim(self, region: Region) -> int:
        return _dimension(region.channels if self.dim is None else self.dim, region.free)


@dataclass(frozen=True)
class Row(Pattern):
    """All elements in a line through the tensor: a row of a memory or of a systolic array.

    Parameters
    ----------
    dim : int
        The dimension along which the line runs.
    """

    dim: int = -1

    has_place: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _whole(self.dim, "dim")

    def elements(self, rng: np.random.Generator, region: Region) -> Positions:
        """Give the elements of a random line; see `Pattern.elements`."""
        shape = region.free
        dim = _dimension(self.dim, shape)
        point = np.unravel_index(int(_distinct(rng, region, 1)[0]), shape)
        return _plane(shape, {i: int(at) for i, at in enumerate(point) if i != dim})

    def first(self, rng: np.random.Generator, region: Region) -> int:
        """Draw the line, and give its first element; see `Pattern.first`."""
        dim = _dimension(self.dim, region.free)
        step = math.prod(region.free[dim + 1 :])
        point = int(_distinct(rng, region, 1)[0])
        flat = point - point // step % region.free[dim] * step
        return int(region.whole(np.array([flat]))[0])

    def counted(self, region: Region) -> int:
        """Give the dimension along which the line runs."""
        return _dimension(self.dim, region.free)

    def places(self, region: Region) -> int:
        """Give the number of lines."""
        dim = _dimension(self.dim, region.free)
        return math.prod(size for i, size in enumerate(region.free) if i != dim)


@dataclass(frozen=True)
class Everywhere(Pattern):
    """Every element."""

    has_place: ClassVar[bool] = True

    def elements(self, rng: np.random.Generator, region: Region) -> Positions:  # noqa: ARG002
        """Give all; see `Pattern.elements`."""
        return np.arange(region.size)

    def places(self, region: Region) -> int:  # noqa: ARG002
        """Give 1: the tensor as a whole is struck."""
        return 1

    @property
    def first_drawn(self) -> bool:  # noqa: D102 - an attribute of the class
        return False

    def first(self, rng: np.random.Generator, region: Region) -> int:  # noqa: ARG002
        """Give 0."""
        return 0


@dataclass(frozen=True)
class _Rate(Pattern):
    rate: float

    def __post_init__(self) -> None:
        rate: object = self.rate
        if not isinstance(rate, SupportsFloat) or not 0 <= float(rate) <= 1:
            raise FaultError(f"{rate!r} is no probability: give a number from 0 to 1")

    def places(self, region: Region) -> int:  # noqa: ARG002
        """Give 1: the tensor as a whole has a rate."""
        return 1


@dataclass(frozen=True)
class ElementErrorRate(_Rate):
    """Each element is struck with a probability, whatever happens to the others.

    Parameters
    ----------
    rate : float
        Probability of a fault per element, from 0 to 1.
    """

    def elements(self, rng: np.random.Generator, region: Region) -> Positions:
        """Draw them, perhaps none; see `Pattern.elements`."""
        return _struck(rng, region.size, self.rate)


@dataclass(frozen=True)
class BitErrorRate(_Rate):
    """Each bit is struck with a probability: memory at reduced voltage or refresh.

    The error model must be a `BitFlip` or `StuckAt` of single bits; it says which bits of an
    element may be struck (all, a field, or chosen ones), and what happens to them.

    Parameters
    ----------
    rate : float
        Probability of a fault per bit, from 0 to 1.
    """

    def elements(self, rng: np.random.Generator, region: Region) -> Positions:  # noqa: ARG002
        """Draw elements alone: not what a rate per bit can do."""
        raise FaultError("a bit error rate strikes bits: draw them with an error model")

    def draw(
        self, rng: np.random.Generator, region: Region, error: ErrorModel, dtype: torch.dtype
    ) -> tuple[Positions, Drawn]:
        """Draw the bits, perhaps none; see `Pattern.draw`."""
        if not isinstance(error, BitModel) or error.bits != 1:
            raise FaultError(
                f"a bit error rate and {error!r} do not go together: give BitFlip() or"
                " StuckAt(0 or 1), or use ElementErrorRate"
            )
        bits = np.array(error.candidates(dtype), np.uint64)
        element, which = np.divmod(_struck(rng, region.size * len(bits), self.rate), len(bits))
        chosen, place = np.unique(element, return_inverse=True)
        masks = np.zeros(len(chosen), np.uint64)
        np.bitwise_or.at(masks, place, np.left_shift(np.uint64(1), bits[which]))
        return region.whole(chosen), error.strike(masks)


def _struck(rng: np.random.Generator, among: int, rate: float) -> Positions:
    # As many as independent trials would give, and then each set of so many as likely as
    # another: the same distribution, without a number per trial.
    return np.sort(rng.choice(among, rng.binomial(among, rate), replace=False, shuffle=False))


def _distinct(rng: np.random.Generator, region: Region, count: int) -> Positions:
    if not region.size:
        raise FaultError(
            f"a tensor of shape {region.shape} has no element to strike: run the model on one"
            " sample or more"
        )
    if count > region.size:
        raise FaultError(
            f"{count} elements can't be struck in a tensor of shape {region.shape}: choose"
            " fewer, or another tensor"
        )
    return np.sort(rng.choice(region.size, count, replace=False, shuffle=False))


def _plane(shape: tuple[int, ...], fixed: dict[int, int]) -> Positions:
    axes = [np.array([fixed[i]]) if i in fixed else np.arange(n) for i, n in enumerate(shape)]
    grid = np.meshgrid(*axes, indexing="ij")
    flat: Positions = np.ravel_multi_index([axis.ravel() for axis in grid], shape).astype(np.int64)
    return flat


def _dimension(dim: int, shape: tuple[int, ...]) -> int:
    if not -len(shape) <= dim < len(shape):
        raise FaultError(f"shape {shape} has no dimension {dim}: choose another one")
    return dim % len(shape)


def _whole(number: object, name: str) -> int:
    try:
        return operator.index(number)  # type: ignore[arg-type]
    except TypeError:
        raise FaultError(f"{name}={number!r}: give a whole number") from None
