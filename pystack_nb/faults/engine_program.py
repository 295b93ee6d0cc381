"""A model's forward as a program that can start anywhere, at any batch size.

Two traces of different batch sizes tell which dimension of each tensor is the batch, and
which numbers grow with it.  From that follows where the program may be cut: at a *clean*
position each live tensor has a row for each sample, so that rows can join, leave and be run
by themselves.
"""

from __future__ import annotations

from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch

from torch.utils import _pytree as pytree

from pystack_nb.faults.data import Inputs
from pystack_nb.faults.engine_jumps import last_jump
from pystack_nb.faults.engine_steps import (
    Affine,
    Env,
    arguments_of,
    compiled,
    ids,
    mutated,
    name_of,
    needs,
)
from pystack_nb.faults.engine_trace import Ref, Site, Step, Trace, UntraceableError, trace


if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Sizes = list[tuple[torch.Tensor, torch.Tensor]]

# What gives each sample the same bits whatever the batch: views, copies, comparisons, masks, and
# arithmetic on single elements that IEEE 754 rounds in one way only.
_ROW_BY_ROW = frozenset(
    [
        "_same",
        "abs",
        "add",
        "add_",
        "alias",
        "arange",
        "batch_norm",
        "bitwise_and",
        "bitwise_not",
        "bitwise_or",
        "cat",
        "chunk",
        "clamp",
        "clamp_",
        "clamp_max",
        "clamp_min",
        "clone",
        "contiguous",
        "detach",
        "div",
        "dropout",
        "embedding",
        "eq",
        "expand",
        "feature_dropout",
        "flatten",
        "full",
        "full_like",
        "ge",
        "gt",
        "hardtanh",
        "hardtanh_",
        "isfinite",
        "isinf",
        "isnan",
        "le",
        "logical_and",
        "logical_not",
        "logical_or",
        "lt",
        "masked_fill",
        "masked_fill_",
        "max_pool1d",
        "max_pool2d",
        "max_pool3d",
        "mul",
        "mul_",
        "narrow",
        "ne",
        "neg",
        "ones",
        "ones_like",
        "permute",
        "relu",
        "relu6",
        "relu_",
        "reshape",
        "rsub",
        "select",
        "slice",
        "split",
        "squeeze",
        "stack",
        "sub",
        "t",
        "threshold",
        "transpose",
        "tril",
        "triu",
        "unbind",
        "unflatten",
        "unsqueeze",
        "view",
        "where",
        "zeros",
        "zeros_like",
    ]
)
_CASTS = frozenset(["_to_copy", "to", "type_as"])

# What may make large numbers cancel each other out, row by row.
_ADDING = frozenset(["add", "add_", "sub", "sub_", "rsub"])


class Program:
    """The operations of one forward.

    Parameters
    ----------
    model : torch.nn.Module
        In eval mode.
    inputs : sequence of torch.Tensor
        With at least one row each; rows are repeated for the traces.

    Attributes
    ----------
    length : int
        Number of steps; position ``p`` is before step ``p``.
    live : list of frozenset of int
        The tensors, by id, that the steps from a position on use and that earlier ones made.
    clean : list of bool
        Whether the program may be cut at a position.
    batch_dim : dict of int to int
        Of each tensor that has a row for each sample.
    sites : dict of Site to int
        The step at which a hook would see a tensor.
    output : list of int
        The tensors that the model returns.
    device : torch.device
        Where the inputs are.

    Raises
    ------
    UntraceableError
        If there is no such program.
    """

    def __init__(self, model: torch.nn.Module, inputs: Sequence[torch.Tensor]) -> None:
        two, three = (
            trace(model, Inputs.of(inputs).each(lambda x, n=n: _repeat(x, n)))  # type: ignore[misc]
            for n in (2, 3)
        )
        merged = _merge(two, three)
        self._dims = [_batch_dim(a, b) for a, b in zip(two.tensors, three.tensors, strict=True)]
        self._storage = [t.untyped_storage()._cdata for t in two.tensors]  # noqa: SLF001
        self._sizes = [t.numel() for t in two.tensors]
        floating = {i: t for i, t in enumerate(two.tensors) if t.is_floating_point()}
        # Numbers of one byte have no largest one.
        self._measurable = {i for i, t in floating.items() if t.numel() and t.itemsize > 1}
        self._infinite = {i for i, t in floating.items() if not t.double().isfinite().all()}
        self._types = [t.dtype for t in two.tensors]
        # Rows can be copied such that each lies in memory as it does by itself, unless it is a
        # view of a part of something.
        self._whole = [
            t.storage_offset() == 0 and t.untyped_storage().nbytes() == t.numel() * t.itemsize
            for t in two.tensors
        ]
        self.inputs = two.inputs
        self.device = inputs[0].device
        self.output = two.output
        self._find_rows(merged)
        self._within = {
            i: [d for d in range(two.tensors[i].dim()) if d != dim]
            for i, dim in self.batch_dim.items()
        }
        self.length = len(self.steps)
        self.run_step = [compiled(step) for step in self.steps]
        self._run_constant = [compiled(step) for step in self._constant_steps]
        self.row_by_row = [self._is_row_by_row(step) for step in self.steps]
        self.sites = {step.site: k for k, step in enumerate(self.steps) if step.site}
        self._needs = [needs(step) for step in self.steps]
        self._constant_needs = [needs(step) for step in self._constant_steps]
        self._find_lives()
        # From there on, rounding errors stay about as small as they are.
        self.last_jump = last_jump(
            self.steps, self.row_by_row, two.tensors, self.inputs, self.output
        )

    def constants(self) -> Env:
        """Compute what depends on parameters alone, such as a parametrised weight."""
        env: Env = {}
        for run in self._run_constant:
            run(env, 1)
        return env

    def run(self, env: Env, batch: int, start: int, end: int) -> None:
        """Run the steps from one position to another, forgetting what is no longer used."""
        run_step, dead = self.run_step, self._dead
        for k in range(start, end):
            run_step[k](env, batch)
            for i in dead[k]:
                del env[i]

    @cached_property
    def changing(self) -> set[int]:
        """The watched positions whose new tensors a later step changes in place."""
        return {k for k, new in self.watched.items() if not self.mutated_from(k).isdisjoint(new)}

    def sizes(self, position: int, parts: Iterable[Sequence[torch.Tensor]]) -> Sizes:
        """Give the largest and the least number in each row of what is new at a position."""
        found = []
        for i, part in zip(self.watched[position], parts, strict=True):
            rows = part[0] if len(part) == 1 else torch.cat(list(part), self.batch_dim[i])
            within = self._within[i]
            if i in self._infinite:
                # Of what attention masks, say, no rounding error comes.
                rows = rows.nan_to_num(0, 0, 0)
            found.append((rows.amax(within), rows.amin(within)) if within else (rows, rows))
        return found

    def forget(self, env: Env, step: int) -> None:
        """Let go of what no step after this one uses."""
        for i in self._dead[step]:
            del env[i]

    def outputs(self, env: Env) -> list[torch.Tensor]:
        """Give the tensors of the model's output, each with its batch dimension first."""
        return [env[i].movedim(self.batch_dim[i], 0) for i in self.output]

    @cached_property
    def boundaries(self) -> list[int]:
        """Clean positions before steps that are not row by row, and the end."""
        found = [k for k in range(1, self.length) if self.clean[k] and not self.row_by_row[k]]
        return [0, *[k for k in found if k], self.length]

    @cached_property
    def watched(self) -> dict[int, list[int]]:
        """Clean positions beside steps that are not row by row, with the tensors new there.

        Rounding errors come into being nowhere else, and are as large as what these steps take.
        What they give tells more than what the next one takes where numbers are added between
        them, of which the large ones may cancel each other out.
        """
        found, last = dict[int, list[int]](), 0
        for start, end in pairwise(self.boundaries):
            behind = next((k for k in range(start + 1, end) if self.clean[k]), end)
            adds = any(name_of(step) in _ADDING for step in self.steps[behind:end])
            for position in [behind, end] if adds else [end]:
                found[position] = sorted(self.changed_between(last, position) & self._measurable)
                last = position
        found.pop(self.length, None)
        return found

    @cached_property
    def blocks(self) -> list[tuple[int, int]]:
        """The steps between each clean position and the next one."""
        return list(pairwise([k for k in range(self.length + 1) if self.clean[k]]))

    def join_before(self, step: int) -> int:
        """Give the last position up to ``step`` at which rows can join."""
        return next(k for k in range(step, -1, -1) if self.clean[k])

    def all_row_by_row(self, start: int, end: int) -> bool:
        """Whether the steps between two positions give a row the same bits in any batch."""
        return all(self.row_by_row[start:end])

    def changed_between(self, start: int, end: int) -> frozenset[int]:
        """Give the tensors live at ``end`` that the steps from ``start`` on make or change."""
        made = {i for k in range(start, end) for i in self._made[k]}
        # Also what is changed by way of a view.
        struck = {self._storage[i] for k in range(start, end) for i in self.mutated[k]}
        return frozenset(i for i in self.live[end] if i in made or self._storage[i] in struck)

    def used_between(self, start: int, end: int) -> frozenset[int]:
        """Give the tensors that some steps take."""
        return frozenset().union(*(taken for _, taken, _ in self._needs[start:end]))

    def shares_storage(self, one: int, others: Iterable[int]) -> list[int]:
        """Give those of ``others`` that have their memory in common with a tensor."""
        return [i for i in others if self._storage[i] == self._storage[one]]

    def mutated_from(self, start: int) -> frozenset[int]:
        """Give the tensors live at a position that a later step changes in place."""
        struck = {self._storage[i] for k in range(start, self.length) for i in self.mutated[k]}
        return frozenset(i for i in self.live[start] if self._storage[i] in struck)

    def uses(self, tensor: torch.Tensor) -> tuple[list[int], bool]:
        """Give the steps for which a parameter's memory matters.

        Returns
        -------
        steps : list of int
        remade : bool
            Whether constants are computed from it.
        """
        wanted = tensor.untyped_storage()._cdata  # noqa: SLF001
        reached: set[int] = set()
        for outside, taken, made in self._constant_needs:
            if wanted in outside or reached & taken:
                reached |= made
        steps = [
            k
            for k, (outside, taken, _) in enumerate(self._needs)
            if wanted in outside or reached & taken
        ]
        return steps, bool(reached)

    def row_elements(self, number: int) -> int:
        """Give the number of elements of a tensor's row."""
        return self._sizes[number] // 2

    @property
    def output_elements(self) -> int:
        """The number of elements of one row of the model's output."""
        return max(1, sum(self.row_elements(i) for i in self.output))

    def _find_rows(self, merged: list[Step]) -> None:
        """Split the steps into constant ones and those that depend on the samples."""
        varies = set(self.inputs)
        self.steps: list[Step] = []
        self._constant_steps: list[Step] = []
        for step in merged:
            used, made = ids(step.args, step.kwargs), ids(step.out)
            varying = any(i in varies for i in used) or any(self._dims[i] is not None for i in made)
            (self.steps if varying else self._constant_steps).append(step)
            if varying:
                varies.update(made)
            for i in mutated(step):
                if i not in varies:
                    raise UntraceableError(f"{step.op} changes what outlasts the forward")
        if any(self._dims[i] is None for i in varies):
            raise UntraceableError("samples of a batch are mixed with each other")
        self._varies = varies
        self.batch_dim = {i: d for i in varies if (d := self._dims[i]) is not None and d >= 0}

    def _find_lives(self) -> None:
        self._made = [made - taken for _, taken, made in self._needs]
        self.mutated = [list(mutated(step)) for step in self.steps]
        live = set(self.output)
        if not live or not live <= self.batch_dim.keys():
            raise UntraceableError("the model's output has no row for each sample")
        lives = [frozenset(live)]
        for k in range(self.length - 1, -1, -1):
            live = (live - self._made[k]) | (self._needs[k][1] & self._varies)
            lives.append(frozenset(live))
        self.live = lives[::-1]
        self._dead = [(self.live[k] | self._made[k]) - self.live[k + 1] for k in range(self.length)]
        self.clean = [self._is_clean(k) for k in range(self.length + 1)]
        if not self.clean[0]:
            raise UntraceableError("an input has no row for each sample")

    def _is_row_by_row(self, step: Step) -> bool:
        if step.site is not None:
            return True
        return (
            (name_of(step) in _ROW_BY_ROW or self._casts_exactly(step))
            # A product that is added is rounded in vector instructions once, and beside them twice.
            and arguments_of(step).get("alpha", 1) in (1, -1)
            and not any(self._is_complex(x) for x in pytree.tree_leaves((step.args, step.kwargs)))
        )

    def _casts_exactly(self, step: Step) -> bool:
        if name_of(step) not in _CASTS:
            return False
        # How numbers that are none, or too large, are cast may depend on their place.
        (old, *_), (new, *_) = ([self._types[i] for i in ids(x)] for x in (step.args, step.out))
        return new in {old, torch.bool} or not (old.is_floating_point or old.is_complex)

    def _is_complex(self, value: Any) -> bool:
        if isinstance(value, Ref):
            return self._types[value.id].is_complex
        return isinstance(value, torch.Tensor) and value.is_complex()

    def _is_clean(self, position: int) -> bool:
        live = self.live[position]
        if any(i not in self.batch_dim or not self._whole[i] for i in live):
            return False
        struck = [i for k in range(position, self.length) for i in self.mutated[k]]
        storages = [self._storage[i] for i in live]
        return all(storages.count(self._storage[i]) <= 1 for i in struck)


def _repeat(tensor: torch.Tensor, rows: int) -> torch.Tensor:
    return tensor[torch.arange(rows, device=tensor.device) % len(tensor)]


def _batch_dim(two: torch.Tensor, three: torch.Tensor) -> int | None:
    """Compare shapes: None if equal, -1 if there is no single dimension of the batch's size."""
    if two.dim() != three.dim():
        raise UntraceableError("a tensor's number of dimensions depends on the batch")
    differing = [d for d in range(two.dim()) if two.shape[d] != three.shape[d]]
    if not differing:
        return None
    d = differing[0]
    return d if len(differing) == 1 and (two.shape[d], three.shape[d]) == (2, 3) else -1


def _merge(two: Trace, three: Trace) -> list[Step]:
    if [(s.op, s.site) for s in two.steps] != [(s.op, s.site) for s in three.steps]:
        raise UntraceableError("other operations run for another batch size")
    if len(two.tensors) != len(three.tensors):
        raise UntraceableError("another number of tensors is made for another batch size")
    return [
        Step(
            a.op,
            _merge_values(a.args, b.args),
            _merge_values(a.kwargs, b.kwargs),
            _merge_values(a.out, b.out),
            a.site,
        )
        for a, b in zip(two.steps, three.steps, strict=True)
    ]


def _merge_values(two: Any, three: Any) -> Any:
    first, spec = pytree.tree_flatten(two)
    second, other = pytree.tree_flatten(three)
    if spec != other:
        raise UntraceableError("arguments have another structure for another batch size")
    return pytree.tree_unflatten(
        [_merge_leaves(a, b) for a, b in zip(first, second, strict=True)], spec
    )


def _merge_leaves(two: Any, three: Any) -> Any:
    if isinstance(two, torch.Tensor):
        # Numbers that are assigned to slices come as tensors of no dimension.
        number = two.dim() == three.dim() == 0 and bool(two == three)
        if two is not three and not number:
            raise UntraceableError("a tensor is made beside the operations that can be seen")
        return two
    if isinstance(two, torch.ScriptObject):
        raise UntraceableError("an operation takes an object whose contents can't be seen")
    if isinstance(two, int) and isinstance(three, int) and two != three:
        return Affine(two - 2 * (three - two), three - two)
    if two is not three and two != three and not (two != two and three != three):  # noqa: PLR0124
        raise UntraceableError(f"an argument is {two!r} in a batch of 2 and {three!r} in one of 3")
    return two


__all__ = ["Env", "Program", "Site", "Sizes", "UntraceableError"]
