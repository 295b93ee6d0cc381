"""The golden run of some samples, bit for bit what each sample gives by itself."""

from __future__ import annotations

import copy

from typing import TYPE_CHECKING

import torch


if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from pystack_nb.faults.engine_program import Env, Program, Sizes


class Golden:
    """The program's tensors without a fault, at a position that moves on.

    Each sample is computed in a batch of its own where the batch could change a rounding, and
    the rows are then kept together, each with the strides that it has by itself.

    Parameters
    ----------
    program : Program
        What runs.
    constants : dict of int to torch.Tensor
        `Program.constants`.
    inputs : sequence of torch.Tensor
        A row per sample.
    """

    def __init__(self, program: Program, constants: Env, inputs: Sequence[torch.Tensor]) -> None:
        self._program = program
        self._constants = constants
        self.env: Env = {}
        self.rows = len(inputs[0])
        for number, tensor in zip(program.inputs, inputs, strict=True):
            # A copy: the model may change its input in place.
            self.env[number] = tensor.clone()
        for number in set(program.inputs) - program.live[0]:
            del self.env[number]
        self.position = 0
        # Of each watched position so far, if a dict is put here.
        self.sizes: dict[int, Sizes] | None = None

    def branch(self, env: Env, rows: torch.Tensor) -> Golden:
        """Make a run that goes on from here with other numbers, as exact as this one.

        Parameters
        ----------
        env : dict of int to torch.Tensor
            The tensors live here, with rows that are bit for bit what each gives by itself.
        rows : torch.Tensor of int64
            Which of those rows.
        """
        other, dims = copy.copy(self), self._program.batch_dim
        other.rows, other.env, other.sizes = len(rows), {}, None
        for i, mine in self.env.items():
            # Kernels, and with them roundings, are chosen by how a row lies in memory.
            other.env[i] = _room_for(mine.narrow(dims[i], 0, 1), dims[i], other.rows)
            torch.index_select(env[i], dims[i], rows.to(mine.device), out=other.env[i])
        return other

    def advance(self, end: int, stops: Collection[int] = ()) -> dict[int, Env]:
        """Go on to a clean position.

        Returns
        -------
        dict of int to dict
            For each stop, which is a clean position from the present one on, the tensors live
            there; nothing that runs later changes them.
        """
        program, kept = self._program, dict[int, "Env"]()
        for start, stop in program.blocks:
            if stop <= self.position or start >= end:
                continue
            if start in stops:
                kept[start] = {i: self.env[i] for i in program.live[start]}
            struck = [i for k in range(start, stop) for i in program.mutated[k]]
            for i in struck:
                for snapshot in kept.values():
                    for j in program.shares_storage(i, snapshot):
                        snapshot[j] = snapshot[j].clone()
            self._run(start, stop)
            self.position = stop
            if self.sizes is not None and stop in program.watched:
                new = [[self.env[i]] for i in program.watched[stop]]
                self.sizes[stop] = program.sizes(stop, new)
        return kept

    def _run(self, start: int, stop: int) -> None:
        env = self.env | self._constants
        if self.rows == 1 or self._runs_as_one(start, stop):
            self._program.run(env, self.rows, start, stop)
        else:
            env = self._one_by_one(env, start, stop)
        self.env = {i: env[i] for i in self._program.live[stop]}

    def _runs_as_one(self, start: int, stop: int) -> bool:
        program = self._program
        site, used = program.steps[start].site, program.used_between(start, start + 1)
        return (
            stop == start + 1
            and program.row_by_row[start]
            and all(program.batch_dim.get(i, 0) == 0 or site is not None for i in used)
        )

    def _one_by_one(self, env: Env, start: int, stop: int) -> Env:
        program, dims = self._program, self._program.batch_dim
        made = program.changed_between(start, stop)
        needed = program.live[start] & program.used_between(start, stop)
        stacked: Env = {}
        for row in range(self.rows):
            # Copies: where a tensor begins in memory can change the rounding of a product.
            own = self._constants | {i: env[i].narrow(dims[i], row, 1).clone() for i in needed}
            program.run(own, 1, start, stop)
            for i in made:
                if row == 0:
                    stacked[i] = _room_for(own[i], dims[i], self.rows)
                stacked[i].select(dims[i], row).copy_(own[i].select(dims[i], 0))
        return env | stacked


def take(tensor: torch.Tensor, rows: torch.Tensor, dim: int) -> torch.Tensor:
    """Copy rows of a tensor, in an order of memory that kernels treat alike."""
    taken = tensor.index_select(dim, rows)
    if tensor.dim() == 4 and _is_channels_last(tensor):
        return taken.contiguous(memory_format=torch.channels_last)
    return taken


def _is_channels_last(tensor: torch.Tensor) -> bool:
    return not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)


def _room_for(row: torch.Tensor, dim: int, rows: int) -> torch.Tensor:
    """Make an empty tensor for many such rows, each laid out in memory as this one."""
    like = torch.empty_like(row)
    shape, strides = list(like.shape), list(like.stride())
    shape[dim], strides[dim] = rows, like.numel()
    return torch.empty_strided(shape, strides, dtype=row.dtype, device=row.device)
