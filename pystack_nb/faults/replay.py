"""Faults of a campaign as `inject` takes them."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pystack_nb.errors import FaultError
from pystack_nb.faults.drawn import Drawn
from pystack_nb.faults.fault import Fault, streams
from pystack_nb.faults.patterns import Pattern


if TYPE_CHECKING:
    import torch

    from pystack_nb.faults.models import ErrorModel
    from pystack_nb.faults.patterns import Positions, Region
    from pystack_nb.faults.strata import Stratum

_MASKS = ("and_mask", "or_mask", "xor_mask")


@dataclass(frozen=True)
class Planned(Pattern):
    """Strikes what a row of a plan tells, whatever seed an injection has.

    Attributes
    ----------
    size : int or None
        The elements of the tensor, for one sample; None where a table of faults does not tell.
    sample : int
        The one that the fault was planned for.
    """

    size: int | None
    sample: int

    def elements(self, rng: np.random.Generator, region: Region) -> Positions:  # noqa: ARG002
        """Give the elements; see `Pattern.elements`."""
        self._check(region)
        return self._elements(region)

    def draw(
        self,
        rng: np.random.Generator,  # noqa: ARG002
        region: Region,
        error: ErrorModel,
        dtype: torch.dtype,
    ) -> tuple[Positions, Drawn]:
        """Give the elements and what happens to each; see `Pattern.draw`."""
        self._check(region)
        return self._drawn(region, error, dtype)

    @abstractmethod
    def _elements(self, region: Region) -> Positions: ...

    @abstractmethod
    def _drawn(
        self, region: Region, error: ErrorModel, dtype: torch.dtype
    ) -> tuple[Positions, Drawn]: ...

    def _check(self, region: Region) -> None:
        if self.size is not None and region.size != self.size:
            raise FaultError(
                f"this fault was planned for a tensor of {self.size} elements of one sample, and"
                f" here are {region.size}, in shape {region.shape}: run the campaign's model on"
                f" sample {self.sample} alone, as in model(inputs[[{self.sample}]])"
            )


@dataclass(frozen=True)
class OfSeed(Planned):
    """A fault whose seed tells it.

    Attributes
    ----------
    pattern : Pattern
        The campaign's.
    seed : int
    """

    pattern: Pattern
    seed: int

    def _elements(self, region: Region) -> Positions:
        return self.pattern.elements(streams(self.seed, 1)[0], region)

    def _drawn(
        self, region: Region, error: ErrorModel, dtype: torch.dtype
    ) -> tuple[Positions, Drawn]:
        return self.pattern.draw(streams(self.seed, 1)[0], region, error, dtype)


@dataclass(frozen=True)
class OfMasks(Planned):
    """A fault of one element, whose masks tell it.

    Attributes
    ----------
    element, and_mask, or_mask, xor_mask, bit
        As in `Plan.faults`.
    value : float or None
        As there, None for NaN, with which no fault would be equal to itself.
    """

    element: int
    and_mask: int
    or_mask: int
    xor_mask: int
    bit: int
    value: float | None

    @classmethod
    def of(cls, row: Any, size: int | None = None) -> OfMasks:
        """Give that of a row of `Plan.faults`, a mapping."""
        told = {x: int(row[x]) for x in ("sample", "element", *_MASKS, "bit")}
        value = float(row["value"])
        return cls(size, **told, value=None if np.isnan(value) else value)

    def _elements(self, region: Region) -> Positions:  # noqa: ARG002
        return np.array([self.element])

    def _drawn(
        self,
        region: Region,
        error: ErrorModel,  # noqa: ARG002
        dtype: torch.dtype,  # noqa: ARG002
    ) -> tuple[Positions, Drawn]:
        masks = {x: np.array([getattr(self, x)], np.uint64) for x in _MASKS}
        value = np.array([np.nan if self.value is None else self.value])
        drawn = Drawn.of(1, **masks, value=value, bit=np.array([self.bit]))
        return region.whole(self._elements(region)), drawn


def as_fault(row: Any, stratum: Stratum) -> Fault:
    """Give the fault of a row of a plan.

    Parameters
    ----------
    row : mapping
        A row of `Plan.faults`.
    stratum : Stratum
        The row's.
    """
    at = stratum.calls.index(row["call"])
    size = stratum.elements[at]
    where: Planned
    if stratum.pattern is None:
        where = OfMasks.of(row, size)
    else:
        where = OfSeed(size, int(row["sample"]), stratum.pattern, int(row["seed"]))
    dim = max(0, stratum.batch_dims[at])
    return Fault(
        stratum.layer, stratum.role, where, stratum.error, call=int(row["call"]), batch_dim=dim
    )
