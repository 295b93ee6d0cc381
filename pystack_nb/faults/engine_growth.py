"""How much larger than without a fault the numbers become that are rounded.

Rounding errors grow with the numbers that are rounded.  Those that a fault makes may be far
larger than what they become later, where they cancel each other out, and they say nothing of
each other: a sample of small numbers may lie beside one of large ones.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np
import torch


if TYPE_CHECKING:
    from pystack_nb.faults.engine_program import Env, Program, Sizes
    from pystack_nb.faults.engine_trials import Ints, Trials

    _New = tuple[Ints, Ints, list[torch.Tensor]]

# So many numbers are measured at a time, rather than each few by themselves.
_WAIT_FOR = 2**18


class Growth:
    """Sees how large numbers become in a batch, wherever it may be rounded otherwise.

    Parameters
    ----------
    program : Program
        What runs.
    trials : Trials
        Where it is noted.
    """

    def __init__(self, program: Program, trials: Trials) -> None:
        self._program = program
        self._trials = trials
        # By position: tensors that wait for others to be measured with, and the sizes of some,
        # which are compared when the golden ones are known everywhere.
        self._waiting: dict[int, list[_New]] = defaultdict(list)
        self._elements = 0
        self._seen: dict[int, list[tuple[Ints, Ints, Sizes]]] = defaultdict(list)

    def run(self, env: Env, trials: Ints, rows: Ints, start: int, end: int) -> None:
        """Run a part of the program.

        Parameters
        ----------
        env : dict of int to torch.Tensor
            The tensors at the clean position ``start``, a row for each trial.
        trials, rows : numpy.ndarray of int64, shape (n,)
            The trials, and the row of each one's sample among the golden ones.
        start, end : int
            Clean positions.
        """
        for position in [*(k for k in self._program.watched if start < k < end), end]:
            self._program.run(env, len(trials), start, position)
            self.see(env, trials, rows, position)
            start = position

    def see(self, env: Env, trials: Ints, rows: Ints, position: int) -> None:
        """Look at what is new at a position."""
        program = self._program
        if position in program.watched:
            new = [env[i] for i in program.watched[position]]
            self._waiting[position].append((trials, rows, new))
            self._elements += sum(x.numel() for x in new)
            if self._elements > _WAIT_FOR or position in program.changing:
                self._measure()

    def _measure(self) -> None:
        for position, waiting in self._waiting.items():
            trials, rows, new = zip(*waiting, strict=True)
            sizes = self._program.sizes(position, list(zip(*new, strict=True)))
            self._seen[position].append((np.concatenate(trials), np.concatenate(rows), sizes))
        self._waiting.clear()
        self._elements = 0

    def compare(self, usual: dict[int, Sizes]) -> None:
        """Note what was seen, given the sizes of the golden numbers at all positions."""
        self._measure()
        for position, seen in self._seen.items():
            trials, rows = (np.concatenate(x) for x in list(zip(*seen, strict=True))[:2])
            golden = [_largest(*pair)[rows] for pair in usual[position]]
            for i, beside in enumerate(golden):
                most, least = zip(*(sizes[i] for _, _, sizes in seen), strict=True)
                self._trials.grow(trials, _largest(torch.cat(most), torch.cat(least)), beside)
        self._seen.clear()


def _largest(most: torch.Tensor, least: torch.Tensor) -> np.ndarray:
    found: np.ndarray = torch.maximum(most, -least).double().cpu().numpy()
    return found
