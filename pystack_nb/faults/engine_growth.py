"""How much larger than is usual the numbers become that a struck weight makes.

Rounding errors grow with the numbers that are rounded.  Those that a fault makes may be far
larger than what they become later, where they cancel each other out, and they say nothing of
each other: a sample of small numbers may lie beside one of large ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from pystack_nb.faults.engine_channels import channel_dim, is_same
from pystack_nb.faults.engine_trials import sizes_of


if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pystack_nb.faults.engine_program import Env, Program
    from pystack_nb.faults.engine_trials import Ints, Trials
    from pystack_nb.faults.engine_weights import Target

    Sizes = NDArray[np.float64]


class Growth:
    """Finds out how large numbers become where weights are used, on several samples at once.

    Parameters
    ----------
    program, constants
        What runs.
    trials : Trials
        Where it is noted.
    """

    def __init__(self, program: Program, constants: Env, trials: Trials) -> None:
        self._program = program
        self._constants = constants
        self._trials = trials
        # The size of golden numbers, by sample, that steps make from a weight.
        self._usual: dict[int, dict[int, Sizes]] = {}

    def look(self, target: Target, kept: Env, position: int, trials: Ints) -> None:
        """Look at the golden numbers where a weight is used that nothing strikes now.

        Parameters
        ----------
        target : Target
            The weight.
        kept : dict of int to torch.Tensor
            The golden tensors of the samples at a position before that.
        position : int
        trials : numpy.ndarray of int64, shape (n, samples)
            Of each fault that is going to strike it.
        """
        program, usual = self._program, dict[int, "Sizes"]()
        env = self._constants | {i: x.clone() for i, x in kept.items()}
        rows, factor = trials.shape[1], None
        for step in sorted({target.first, target.last}):
            program.run(env, rows, position, step)
            if target.first == target.last:
                factor = self._factor(target, env, rows)
            program.run_step[step](env, rows)
            usual[step] = self._made(env, step, rows)
            program.forget(env, step)
            position = step + 1
        if factor is None:
            self._usual[id(target)] = usual
            return
        before, after = (x[trials] for x in (self._trials.before, self._trials.after))
        with np.errstate(over="ignore", invalid="ignore"):
            self._trials.grow(trials, np.abs(after - before) * factor, usual[target.first])
        self._usual[id(target)] = {}

    def follow(self, env: Env, trials: Ints, target: Target, position: int) -> int:
        """Run a struck weight's steps, if they tell how large numbers become.

        Returns
        -------
        int
            The position up to which they were run.
        """
        program, rows = self._program, len(trials)
        for step, usual in self._usual[id(target)].items():
            program.run(env, rows, position, step)
            program.run_step[step](env, rows)
            self._trials.grow(trials, self._made(env, step, rows), usual)
            program.forget(env, step)
            position = step + 1
        return position

    def _made(self, env: Env, step: int, rows: int) -> Sizes:
        """Give the size of the largest number in each row of what a step has made."""
        dims, size = self._program.batch_dim, np.zeros(rows)
        for i in self._program.given_by(step):
            if i in dims and env[i].is_floating_point():
                size = np.maximum(size, sizes_of(env[i].movedim(dims[i], 0)))
        return size

    def _factor(self, target: Target, env: Env, rows: int) -> Sizes | None:
        """Give the largest number, by sample, that an element is multiplied by.

        None where more than a product is added to an output, so that one has to see what is.
        """
        program, step = self._program, self._program.steps[target.first]
        weight = target.weight
        if weight is None or target.remade or channel_dim(step) is None:
            return None
        # Each output is a sum in which an element of the weight, or of the bias, is once.
        taken, *operands = step.args[:3]
        same = [isinstance(x, torch.Tensor) and is_same(x, weight.tensor) for x in operands]
        if same == [False, True]:
            return np.ones(rows)
        if not same[0] or any(same[1:]) or taken.id not in program.batch_dim:
            return None
        return sizes_of(env[taken.id].movedim(program.batch_dim[taken.id], 0))
