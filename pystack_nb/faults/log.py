"""What was injected, where, when, and what stood there before."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from pystack_nb.faults import bits, values


if TYPE_CHECKING:
    import torch

    from numpy.typing import NDArray

    from pystack_nb.faults.elements import Elements

_COLUMNS = ["fault", "forward", "layer", "call", "role", "index", "bit"]


class Contents(NamedTuple):
    """Elements of a tensor at one moment: their stored bits, and values where a scale counts.

    They stay on the tensor's device: a forward does not wait until they are read.
    """

    stored: torch.Tensor
    scaled: torch.Tensor | None

    @classmethod
    def of(cls, elements: Elements) -> Contents:
        """Copy elements."""
        scaled = values.taken(elements) if elements.tensor.is_quantized else None
        return cls(elements.read(), scaled)

    def first(self) -> Contents:
        """Give the first one alone."""
        return Contents(self.stored[:1], None if self.scaled is None else self.scaled[:1])

    def numbers(self, dtype: torch.dtype) -> list[Any]:
        """Give them as Python numbers."""
        read = self.stored.cpu().view(dtype) if self.scaled is None else self.scaled
        found: list[Any] = read.tolist()
        return found


class Injection(NamedTuple):
    """One fault that struck one tensor once."""

    fault: int
    forward: int
    layer: str
    call: int
    role: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    positions: NDArray[np.int64]
    bit: NDArray[np.int64]
    before: Contents
    after: Contents
    time_ns: int

    def event(self) -> dict[str, Any]:
        """Give what a recording says of it: all of it, and of its elements the first."""
        said = {name: getattr(self, name) for name in ("fault", "forward", "layer", "call", "role")}
        first = slice(1)
        axes = np.unravel_index(self.positions[first], self.shape) if self.shape else ()
        before, after = (x.first().numbers(self.dtype) for x in (self.before, self.after))
        if len(self.positions):
            said["index"] = [int(axis[0]) for axis in axes]
            said |= {"bit": int(self.bit[0]), "before": before[0], "after": after[0]}
        return said | {"elements": len(self.positions)}

    def table(self) -> dict[str, Any]:
        """Give a column for each name of the log, a row per element."""
        axes = np.unravel_index(self.positions, self.shape) if self.shape else ()
        index = [*zip(*(axis.tolist() for axis in axes), strict=True)]
        return {
            **{name: getattr(self, name) for name in ("fault", "forward", "layer", "call", "role")},
            "index": index if self.shape else [()] * len(self.positions),
            "bit": self.bit,
            "before": self.before.numbers(self.dtype),
            "after": self.after.numbers(self.dtype),
            "changed": bits.unsigned(self.before.stored ^ self.after.stored),
            "time_ns": self.time_ns,
        }


class InjectionLog:
    """Every injection that took place, in order; it grows while the context is open.

    Each forward adds two copies of the elements that a fault strikes in it, on their device.

    Attributes
    ----------
    injections : list of Injection
    """

    def __init__(self) -> None:
        self.injections: list[Injection] = []

    def __len__(self) -> int:
        return sum(len(injection.positions) for injection in self.injections)

    def __repr__(self) -> str:
        return f"<{len(self.injections)} injections into {len(self)} elements: .to_frame()>"

    def to_frame(self) -> pd.DataFrame:
        """Give the log as a table.

        Returns
        -------
        pandas.DataFrame
            A row per element struck, in the order of time:

            * ``fault``: which of those given, from 0;
            * ``forward``: of the model within the context, from 0; -1 for a weight that was
              struck before any, for all of them;
            * ``layer``, ``call``, ``role``, ``index`` (tuple): the site;
            * ``bit``: the lowest bit struck, -1 where whole values were;
            * ``before``, ``after``: the element's value, a Python number;
            * ``changed``: the stored bits that differ, as a uint64 mask; 0 where the fault
              changed nothing, as a bit stuck at what it is;
            * ``time_ns``: when, by CLOCK_MONOTONIC (`time.monotonic_ns`).
        """
        parts = [injection.table() for injection in self.injections]
        frames = [pd.DataFrame(part) for part in parts if part["index"]]
        if not frames:
            empty: list[Any] = []
            columns = [*_COLUMNS, "before", "after", "changed", "time_ns"]
            return pd.DataFrame(dict.fromkeys(columns, empty))
        return pd.concat(frames, ignore_index=True)
