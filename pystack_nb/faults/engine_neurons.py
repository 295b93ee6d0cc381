"""Neuron faults: a batch in which each row has a fault of its own.

Rows join the batch where their faults strike, with golden tensors up to there; those that
are equal to the golden ones when the operations that treat each row alone are over have been
masked, and leave.  The others go on together, but for those whose outcome rounding errors
could change: these are computed one by one wherever a batch could round otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch

from pystack_nb.faults import bits
from pystack_nb.faults.blame import check_blame
from pystack_nb.faults.engine_golden import take
from pystack_nb.faults.engine_growth import Growth
from pystack_nb.faults.engine_trials import largest
from pystack_nb.faults.metrics import rows_of


if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pystack_nb.faults.engine_golden import Golden
    from pystack_nb.faults.engine_program import Env, Program
    from pystack_nb.faults.engine_trials import Ints, Outputs, Trials

# What operations raise on numbers that they can't take.  The fault that is to blame is found
# by running each by itself.
_RAISED = (RuntimeError, IndexError, ValueError, ArithmeticError, MemoryError)


@dataclass
class _Rows:
    """Trials on their way through the program, and where their samples' golden rows are."""

    env: Env
    trials: Ints
    golden: Ints

    def __len__(self) -> int:
        return len(self.trials)


class NeuronSweep:
    """One pass over the program with the faults of some samples.

    Parameters
    ----------
    program, constants
        What runs.
    trials : Trials
        Where results are written.
    step : numpy.ndarray of int64
        Each trial's step in the program.
    batch : int
        Rows that are computed together.
    outputs : Outputs
        Where outputs are kept.
    follow : bool
        Whether rows go on together, behind the program's last jump; else each is computed as
        it would be by itself.
    """

    def __init__(
        self,
        program: Program,
        constants: Env,
        trials: Trials,
        step: Ints,
        *,
        batch: int,
        outputs: Outputs,
        follow: bool = True,
    ) -> None:
        self._program = program
        self._constants = constants
        self._trials = trials
        self._step = step
        self._batch = batch
        self._outputs = outputs
        self._follow = follow
        self._usual: dict[int, NDArray[np.float64]] = {}
        self._growth = Growth(program, trials)
        self._left: list[Ints] = [np.empty(0, np.int64)]
        self._far = np.zeros(len(trials.element), bool)
        self._row = np.zeros(len(trials.element), np.int64)
        self._join = {int(k): program.join_before(int(k)) for k in np.unique(step[step >= 0])}

    def run(self, golden: Golden, trials: Ints, rows: Ints) -> Ints:
        """Run trials.

        Parameters
        ----------
        golden : Golden
            Of the samples, at position 0.
        trials, rows : numpy.ndarray of int64, shape (n,)
            The trials, and the row of each one's sample.

        Returns
        -------
        numpy.ndarray of int64
            Trials that have to be run by themselves if they are not exact: something failed, or
            their numbers are so large that rounding errors can't be bounded.
        """
        order = np.argsort(self._step[trials], kind="stable")
        trials, rows = trials[order], rows[order]
        self._row[trials], self._count = rows, golden.rows
        joins = np.array([self._join[int(k)] for k in self._step[trials]])
        carried: _Rows | None = None
        golden.sizes = {}
        for start, end in pairwise(self._program.boundaries):
            first, last = np.searchsorted(joins, [start, end])
            window = slice(first, last)
            kept = golden.advance(end, self._stops(joins[window], trials[window]))
            carried = self._carry(carried, start, end)
            ready = first + self._prepare(kept, trials[window], rows[window])
            for at in range(0, len(ready), self._batch):
                part = ready[at : at + self._batch]
                try:
                    struck = self._strike(kept, joins[part], trials[part], rows[part], end)
                except _RAISED as error:
                    check_blame(error, self._program.device)
                    self._left.append(trials[part])
                    continue
                left = self._drop(struck, golden, int(joins[part[0]]), end)
                del struck
                if left:
                    self._growth.see(left.env, left.trials, left.golden, end)
                if carried and left and len(carried) + len(left) > self._batch:
                    self._finish(carried, end)
                    carried = None
                carried = self._merge(carried, left, end)
        if carried is not None:
            self._finish(carried, self._program.length)
        self._growth.compare(golden.sizes)
        return np.concatenate(self._left)

    def _stops(self, joins: Ints, trials: Ints) -> set[int]:  # noqa: ARG002 - for others
        """Give the positions whose golden tensors are needed for some trials."""
        return set(joins.tolist())

    def _prepare(self, kept: dict[int, Env], trials: Ints, rows: Ints) -> Ints:  # noqa: ARG002
        """Make ready for some trials, and give the places of those that can be run."""
        return np.arange(len(trials))

    def _carry(self, rows: _Rows | None, start: int, end: int) -> _Rows | None:
        if rows is None:
            return None
        try:
            self._growth.run(rows.env, rows.trials, rows.golden, start, end)
        except _RAISED as error:
            check_blame(error, self._program.device)
            self._left.append(rows.trials)
            return None
        return rows

    def _strike(
        self, kept: dict[int, Env], joins: Ints, trials: Ints, golden: Ints, end: int
    ) -> _Rows:
        """Bring new rows to the end of a part of the program, each with its fault."""
        program, steps = self._program, self._step[trials]
        env: Env = {}
        at = present = 0
        for stop in np.unique(np.concatenate([joins, steps])).tolist():
            if present:
                program.run(env, present, at, stop)
            at = stop
            new = golden[joins == stop]
            if len(new):
                env = self._add(env, kept[stop], new, stop)
                present += len(new)
            struck = np.flatnonzero(steps == stop)
            if len(struck):
                program.run_step[stop](env, present)
                self._corrupt(env, stop, struck, trials[struck])
                program.forget(env, stop)
                at = stop + 1
        program.run(env, present, at, end)
        return _Rows(env, trials, golden)

    def _add(self, env: Env, kept: Env, golden: Ints, position: int) -> Env:
        dims = self._program.batch_dim
        live = self._program.live[position]
        which = torch.from_numpy(golden)
        new = {i: take(kept[i], which.to(kept[i].device), dims[i]) for i in live}
        if env:
            new = {i: torch.cat([env[i], new[i]], dims[i]) for i in live}
        return self._constants | new

    def _corrupt(self, env: Env, step: int, rows: Ints, trials: Ints) -> None:
        target = self._program.steps[step].out.id
        others = self._program.live[step + 1] - {target}
        tensor = env[target]
        if self._program.shares_storage(target, others) or _overlaps(tensor):
            tensor = env[target] = tensor.clone()
        dim = self._program.batch_dim[target]
        usual = self._usual_of(step, tensor, rows, trials)
        self._far[self._trials.corrupt(tensor, dim, rows, trials, usual)] = True

    def _usual_of(
        self, step: int, tensor: torch.Tensor, rows: Ints, trials: Ints
    ) -> NDArray[np.float64]:
        """Give the size of the golden numbers in some rows, which are struck next.

        A sample's are not another's: rounding errors of a small one are small.
        """
        known = self._usual.setdefault(step, np.full(self._count, np.nan))
        samples = self._row[trials]
        new = np.flatnonzero(np.isnan(known[samples]))
        if len(new):
            dim = self._program.batch_dim[self._program.steps[step].out.id]
            which = torch.from_numpy(rows[new]).to(tensor.device)
            known[samples[new]] = largest(tensor.index_select(dim, which).movedim(dim, 0))
        return known[samples]

    def _drop(self, rows: _Rows, golden: Golden, start: int, end: int) -> _Rows | None:
        """Let go of rows whose every live tensor is golden, bit for bit.

        Those that must not be rounded otherwise than by themselves leave, too.
        """
        program = self._program
        steps = self._step[rows.trials]
        alone = {int(k): program.all_row_by_row(int(k), end) for k in np.unique(steps)}
        unmixed = np.array([alone[int(k)] for k in steps])
        same = self._trials.unchanged[rows.trials]
        if unmixed.any():
            same |= unmixed & self._equal(rows, golden.env, start, end)
        self._outputs.add_equal(rows.trials[same], rows.golden[same])
        follow = self._follow and end >= program.last_jump
        own = (self._far[rows.trials] | (not follow)) & ~same
        if end == program.length:
            self._left.append(rows.trials[own])
            self._collect(rows, ~same, unmixed)
            return None
        self._one_by_one(rows, golden, own & unmixed)
        self._left.append(rows.trials[own & ~unmixed])
        return self._keep(rows, ~(same | own), end)

    def _one_by_one(self, rows: _Rows, golden: Golden, wanted: NDArray[np.bool_]) -> None:
        """Go on to the end with rows that have been exact so far, and keep them so."""
        if not wanted.any():
            return
        which = np.flatnonzero(wanted)
        mine = golden.branch(rows.env, torch.from_numpy(which))
        try:
            mine.advance(self._program.length)
        except _RAISED as error:
            check_blame(error, self._program.device)
            self._left.append(rows.trials[which])
            return
        leaves = self._program.outputs(mine.env)
        exact = np.ones(len(which), bool)
        self._outputs.add(rows.trials[which], rows.golden[which], exact, leaves)

    def _equal(self, rows: _Rows, golden: Env, start: int, end: int) -> NDArray[np.bool_]:
        equal: torch.Tensor | None = None
        for i in self._program.changed_between(start, end):
            dim = self._program.batch_dim[i]
            mine = bits.stored(rows.env[i])
            which = torch.from_numpy(rows.golden).to(mine.device)
            right = bits.stored(golden[i]).index_select(dim, which)
            alike = rows_of((mine == right).movedim(dim, 0)).all(1)
            equal = alike if equal is None else equal & alike
        if equal is None:
            return np.ones(len(rows), bool)
        result: NDArray[np.bool_] = equal.cpu().numpy()
        return result

    def _keep(self, rows: _Rows, wanted: NDArray[np.bool_], end: int) -> _Rows | None:
        if not wanted.any():
            return None
        live = self._program.live[end]
        if wanted.all():
            return rows
        which, dims = torch.from_numpy(np.flatnonzero(wanted)), self._program.batch_dim
        env = {i: take(x, which.to(x.device), dims[i]) for i, x in rows.env.items() if i in live}
        return _Rows(self._constants | env, rows.trials[wanted], rows.golden[wanted])

    def _merge(self, one: _Rows | None, other: _Rows | None, end: int) -> _Rows | None:
        if one is None or other is None:
            return one if other is None else other
        dims = self._program.batch_dim
        # Each is let go of as soon as it is copied.
        env = {
            i: torch.cat([one.env.pop(i), other.env.pop(i)], dims[i])
            for i in self._program.live[end]
        }
        return _Rows(
            self._constants | env,
            np.concatenate([one.trials, other.trials]),
            np.concatenate([one.golden, other.golden]),
        )

    def _finish(self, rows: _Rows, position: int) -> None:
        done = self._carry(rows, position, self._program.length)
        if done is not None:
            all_of_them = np.ones(len(rows), bool)
            self._collect(rows, all_of_them, ~all_of_them)

    def _collect(self, rows: _Rows, wanted: NDArray[np.bool_], exact: NDArray[np.bool_]) -> None:
        if wanted.any():
            leaves = self._program.outputs(rows.env)
            which = torch.from_numpy(np.flatnonzero(wanted))
            self._outputs.add(
                rows.trials[wanted],
                rows.golden[wanted],
                exact[wanted],
                [x[which.to(x.device)] for x in leaves],
            )


def _overlaps(tensor: torch.Tensor) -> bool:
    return any(
        step == 0 and size > 1 for step, size in zip(tensor.stride(), tensor.shape, strict=True)
    )
