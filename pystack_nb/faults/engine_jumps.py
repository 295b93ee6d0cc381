"""Operations through which a rounding error can become any error at all.

What most layers give moves by about as much as what they take.  A comparison doesn't, nor does
a rounding to whole numbers, as in fake quantisation, or a logarithm near zero: the last bit of
what they take may decide.  How far a batch is off says nothing of what lies behind them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pystack_nb.faults.engine_condition import NORMS, Known, as_number, is_whole, plain
from pystack_nb.faults.engine_steps import arguments_of, ids, mutated


if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import torch

    from pystack_nb.faults.engine_trace import Step

# What jumps, or has singular places that are not looked for.  Comparisons, arguments of maxima,
# casts to integers and the like are known by what they give.
_JUMPING = frozenset(
    [
        "angle",
        "atan2",
        "bernoulli",
        "ceil",
        "cholesky",
        "copysign",
        "det",
        "floor",
        "floor_divide",
        "fmod",
        "frac",
        "frexp",
        "hardshrink",
        "heaviside",
        "histc",
        "inverse",
        "logdet",
        "lu_solve",
        "mode",
        "nextafter",
        "pinverse",
        "qr",
        "remainder",
        "round",
        "sgn",
        "sign",
        "slogdet",
        "svd",
        "tan",
        "trunc",
    ]
)
_REGULAR = frozenset(
    [
        "linalg_cross",
        "linalg_diagonal",
        "linalg_matmul",
        "linalg_matrix_power",
        "linalg_multi_dot",
        "linalg_norm",
        "linalg_vecdot",
        "linalg_vector_norm",
    ]
)
_SEEN_LARGE = frozenset(["isfinite", "isinf", "isnan", "isneginf", "isposinf"])


def last_jump(
    steps: Sequence[Step],
    exact: Sequence[bool],
    tensors: Sequence[torch.Tensor],
    inputs: Iterable[int],
    output: Sequence[int],
) -> int:
    """Find the position from which on rounding errors stay about as small as they are.

    Parameters
    ----------
    steps : sequence of Step
        What runs.
    exact : sequence of bool
        Whether each step gives a row the same bits in any batch.
    tensors : sequence of torch.Tensor
        By number, with their types and storages.
    inputs : iterable of int
        The inputs' numbers.
    output : sequence of int
        The outputs' numbers.

    Returns
    -------
    int
        Behind the last step that jumps, or is steep where it may matter, among those that take
        what may have been rounded otherwise and that an output which is judged hangs on; 0 if
        there is none.
    """
    places = [x.untyped_storage()._cdata for x in tensors]  # noqa: SLF001

    def memory(numbers: Iterable[Any]) -> set[int]:
        return {places[i] for i in numbers if i is not None}

    known = Known(places, {*inputs})
    taken = [memory(ids(x.args, x.kwargs)) for x in steps]
    given = [memory([*ids(x.out), *mutated(x)]) for x in steps]
    found: dict[int, set[int]] = {}
    for k, step in enumerate(steps):
        rounded = [
            i
            for i in ids(step.args, step.kwargs)
            if places[i] in known.rounded and not is_whole(tensors[i])
        ]
        if rounded and step.site is None:
            if _jumps(step, tensors) or known.is_steep(step):
                found[k] = given[k]
            elif plain(step) not in _SEEN_LARGE:
                found[k] = memory(i for i in ids(step.out) if is_whole(tensors[i]))
        known.see(step, exact=exact[k], taken=taken[k], given=given[k])
    judged = [i for i in output if not is_whole(tensors[i])]
    needed = memory(judged or output)
    for k in range(len(steps) - 1, -1, -1):
        if not needed.isdisjoint(found.get(k, ())):
            return k + 1
        if not needed.isdisjoint(given[k]):
            needed |= taken[k]
    return 0


def _jumps(step: Step, tensors: Sequence[torch.Tensor]) -> bool:
    name, given = plain(step), arguments_of(step)
    schema = getattr(step.op, "_schema", None)
    if schema is not None and not schema.name.startswith("aten::"):
        return True  # nobody knows what it does
    degree = given.get("p", given.get("ord"))
    types = {tensors[i].dtype for i in ids(step.args, step.kwargs)}
    cast = [x.dtype for x in map(tensors.__getitem__, ids(step.out)) if x.dtype not in types]
    return (
        name in _JUMPING
        or "fake_quant" in name
        or (name.startswith("linalg_") and name not in _REGULAR)
        or (name in NORMS and degree is not None and not (as_number(degree) or 0) >= 1)
        or (name == "div" and given.get("rounding_mode") is not None)
        or (name == "threshold" and given.get("threshold") != given.get("value"))
        or ("grid_sampler" in name and given.get("interpolation_mode") == 1)
        # To few bits, or to what the same bits mean elsewhere.
        or any(x.itemsize == 1 or name == "view" for x in cast if x.is_floating_point)
    )
