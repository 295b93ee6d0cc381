"""Faults that a seed tells: patterns of elements, noise, functions.

What `inject` would do with that seed is done here, a fault and a forward at a time.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from pystack_nb.errors import FaultError
from pystack_nb.faults import bits, models, values
from pystack_nb.faults.fault import streams
from pystack_nb.faults.patterns import Region
from pystack_nb.faults.strata import of_bit


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch

    from pystack_nb.faults.bits import Masks
    from pystack_nb.faults.drawn import Drawn
    from pystack_nb.faults.engine_trials import Ints, Trials
    from pystack_nb.faults.layers import Slot
    from pystack_nb.faults.models import ErrorModel
    from pystack_nb.faults.patterns import Pattern, Positions


@dataclass
class Seeded:
    """What the trials of one evaluation do.

    Attributes
    ----------
    error, pattern
        The campaign's.
    seed, bit : numpy.ndarray of int64
        Of each trial; the bit is -1 where the error model chooses.
    elements : numpy.ndarray of int64
        How many the tensor of each trial was planned to have; -1 where nobody knows.
    """

    error: ErrorModel
    pattern: Pattern
    seed: Ints
    bit: Ints
    elements: Ints

    def __post_init__(self) -> None:
        self._checked = False

    @property
    def writes_there_only(self) -> bool:
        """Whether the error model writes to struck elements only: one of another's may not."""
        parts = getattr(self.error, "models", (self.error,))
        return all(type(x).__module__ == models.__name__ for x in (self.error, *parts))

    def strike(
        self,
        tensor: torch.Tensor,
        trials: Trials,
        trial: int,
        *,
        weight: bool,
        keep: Callable[[Positions, Masks], None] | None = None,
    ) -> None:
        """Strike a tensor in place, and note what the first element struck was and is.

        Parameters
        ----------
        keep : callable, optional
            Called before anything is written, with what is struck and its stored bits.

        Raises
        ------
        FaultError
            If the tensor is not the planned one, or the error model gives one thing now and
            another later.
        """
        error = of_bit(self.error, int(self.bit[trial]))
        region = Region.of(tuple(tensor.shape), weight=weight)
        # Of a pattern without a place nothing else tells that this is another tensor.
        if self.elements[trial] not in (-1, region.size):
            raise self._elsewhere(tensor)
        stream = streams(int(self.seed[trial]), 1)[0]
        positions, drawn = self.pattern.draw(stream, region, error, tensor.dtype)
        planned = trials.element[trial]
        if planned >= 0 and planned not in positions[:1]:
            raise self._elsewhere(tensor)
        old = bits.read(tensor, positions)
        if keep is not None:
            keep(positions, old)
        if not self._checked and len(positions):
            _check_repeats(error, tensor, positions, drawn)
            self._checked = True
        trials.before[trial] = _first(tensor, positions)
        error.apply(tensor, positions, drawn)
        trials.after[trial] = _first(tensor, positions)
        trials.unchanged[trial] = (old == bits.read(tensor, positions)).all()

    def _elsewhere(self, tensor: torch.Tensor) -> FaultError:
        return FaultError(
            f"{self.pattern} does not strike a tensor of shape {tuple(tensor.shape)} where it"
            " was planned to: take sites from faults.sites(model, *inputs), with inputs of"
            " one sample"
        )


class SeededWeight:
    """A weight that is struck by seeds.

    Parameters
    ----------
    slot : Slot
        Where the layer holds it.
    """

    def __init__(self, slot: Slot) -> None:
        self._slot = slot
        self._undo: tuple[torch.Tensor, Callable[[], Any]] | None = None
        bits.own(slot.open())

    @contextmanager
    def struck(self, results: Trials, trial: int) -> Iterator[None]:
        """Strike, and put all bits back at the end."""
        seeded = results.seeded
        assert seeded is not None  # noqa: S101 - made only where there are seeds
        tensor = self._slot.open()

        def keep(positions: Positions, old: Masks) -> None:
            # Positions and bits of most elements are more than the tensor.
            if seeded.writes_there_only and len(positions) < tensor.numel() / 8:
                self._undo = tensor, partial(bits.write, tensor, positions, old)
            else:
                stored = bits.stored(tensor)
                self._undo = tensor, partial(stored.copy_, stored.clone())

        try:
            seeded.strike(tensor, results, trial, weight=True, keep=keep)
            self._slot.close(tensor)
            yield
        finally:
            self.put_back()

    def put_back(self) -> None:
        """Put back all bits, if something is struck: an interrupt may have come."""
        if self._undo is not None:
            tensor, undo = self._undo
            undo()
            self._slot.close(tensor)
            self._undo = None


def _first(tensor: torch.Tensor, positions: Positions) -> float:
    return float(values.take(tensor, positions[:1])) if len(positions) else np.nan


def _check_repeats(
    error: ErrorModel, tensor: torch.Tensor, positions: Positions, drawn: Drawn
) -> None:
    kept, made = bits.read(tensor, positions), []
    for _ in range(2):
        error.apply(tensor, positions, drawn)
        made.append(bits.read(tensor, positions))
        bits.write(tensor, positions, kept)
    if (made[0] != made[1]).any():
        raise FaultError(
            f"{error} makes other values of the same ones when it is asked again, so that no"
            " fault could be repeated: draw from the generator that it is given, and nowhere else"
        )
