"""What the faults of an error model do, drawn before they strike."""

from __future__ import annotations

import dataclasses

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pystack_nb.faults import bits


if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pystack_nb.faults.bits import Masks

_ALL = ~np.uint64(0)


@dataclass(frozen=True, eq=False)
class Drawn:
    """What the faults of one model do, a row per fault.

    Attributes
    ----------
    and_mask, or_mask, xor_mask : numpy.ndarray of uint64, shape (n,)
        The stored bits become ``((bits & and_mask) | or_mask) ^ xor_mask``.
    value : numpy.ndarray of float64, shape (n,)
        The number that is written, NaN where the model writes none.  Only in quantised
        tensors does it say more than the masks, which do not know the scale.
    bit : numpy.ndarray of int64, shape (n,)
        The lowest bit that is struck, -1 where whole values are.
    noise : numpy.ndarray of float64, shape (n,), or None
        `Noise`'s random numbers.
    rng : numpy.random.Generator or None
        What `Custom`'s function is given.
    parts : tuple of Drawn
        `Sequence`'s models one by one, where the masks can't tell them.
    """

    and_mask: Masks
    or_mask: Masks
    xor_mask: Masks
    value: NDArray[np.float64]
    bit: NDArray[np.int64]
    noise: NDArray[np.float64] | None = None
    rng: np.random.Generator | None = None
    parts: tuple[Drawn, ...] = ()
    # What is the same each time that a permanent fault strikes: indices and masks on devices.
    kept: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)

    def masks(self, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, ...]:
        """Give the three masks as `bits.stored` shows a type, moved to a device once.

        One that is alike for all elements has a single element.
        """
        key = (dtype, device)
        if key not in self.kept:
            alike = [
                x[:1] if len(x) and (x == x[0]).all() else x
                for x in (self.and_mask, self.or_mask, self.xor_mask)
            ]
            ends = np.cumsum([len(x) for x in alike])[:-1].tolist()
            moved = torch.from_numpy(bits.signed(np.concatenate(alike), dtype)).to(device)
            self.kept[key] = moved.tensor_split(ends)
        found: tuple[torch.Tensor, ...] = self.kept[key]
        return found

    def __len__(self) -> int:
        return len(self.bit)

    @property
    def lasting(self) -> bool:
        """Whether bits are stuck, and nothing else: to force them again changes nothing."""
        else_too = self.xor_mask.any() or not np.isnan(self.value).all()
        return not (else_too or self.parts or self.rng or self.noise is not None)

    @classmethod
    def of(cls, count: int, **changed: Any) -> Drawn:
        """Make rows that change nothing, but for what is given."""
        nothing: dict[str, Any] = {
            "and_mask": np.full(count, _ALL),
            "or_mask": np.zeros(count, np.uint64),
            "xor_mask": np.zeros(count, np.uint64),
            "value": np.full(count, np.nan),
            "bit": np.full(count, -1),
        }
        return cls(**(nothing | changed))

    def then(self, second: Drawn) -> Drawn:
        """Give both steps as one, where each reduces to its masks."""
        # Each bit is kept or not, and then inverted or not: ((x & a) | o) ^ f is (x & k) ^ v
        # with k = a & ~o and v = o ^ f, and two such steps are one.
        keep, turn = (
            [part.and_mask & ~part.or_mask for part in (self, second)],
            [part.or_mask ^ part.xor_mask for part in (self, second)],
        )
        # A whole value has bit -1, and so has what contains one.
        return dataclasses.replace(
            second,
            and_mask=keep[0] & keep[1],
            or_mask=np.zeros_like(keep[0]),
            xor_mask=(turn[0] & keep[1]) ^ turn[1],
            bit=np.minimum(self.bit, second.bit),
        )
