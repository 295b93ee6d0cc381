"""The slow way: one fault, one sample, one forward of the model itself.

For models that are no fixed list of operations, and for tensors without a row per sample.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pystack_nb.errors import FaultError
from pystack_nb.faults import structures
from pystack_nb.faults.engine_trace import hooked


if TYPE_CHECKING:
    from collections.abc import Sequence

    from pystack_nb.faults.engine_trace import Site
    from pystack_nb.faults.engine_trials import Outputs, Trials
    from pystack_nb.faults.engine_weights import Weight


def forward(model: torch.nn.Module, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Run the golden forward of one sample; give the tensors of the output."""
    with torch.no_grad(), hooked(model, lambda _, tensor: tensor):
        return tensors_of(model(*(x.clone() for x in inputs)))


def run_one(
    model: torch.nn.Module,
    inputs: Sequence[torch.Tensor],
    target: tuple[str, int, str] | Weight,
    results: Trials,
    *,
    trial: int,
    outputs: Outputs,
) -> bool:
    """Run one trial with hooks, or with a weight struck.

    Parameters
    ----------
    target : tuple or Weight
        Layer, call and role, or the weight.

    Returns
    -------
    bool
        Whether the forward ended without an exception.

    Raises
    ------
    FaultError
        If the forward did not reach the site.
    """
    trials, row = np.array([trial]), np.zeros(1, np.int64)
    reached = not isinstance(target, tuple)

    def strike(at: Site, tensor: torch.Tensor) -> torch.Tensor:
        nonlocal reached
        if at[:3] != target:
            return tensor
        reached = True
        changed = tensor.clone()
        results.corrupt(changed if changed.is_quantized else changed[None], 0, row, trials)
        return changed

    patch: Any = nullcontext() if isinstance(target, tuple) else target.struck(results, trial)
    with torch.no_grad(), hooked(model, strike), patch:
        try:
            leaves = tensors_of(model(*(x.clone() for x in inputs)))
        except FaultError:
            raise
        except Exception:  # noqa: BLE001 - whatever a fault raises is its outcome
            return False
    if not reached:
        raise FaultError(
            f"no forward reached {target}: take sites from faults.sites(model, *inputs), with"
            " inputs of the same kind"
        )
    outputs.add(trials, row, np.ones(1, bool), leaves)
    return True


def tensors_of(output: Any) -> list[torch.Tensor]:
    """Give the tensors in a model's output for one sample, each with a dimension of one row.

    The dimension comes first, and it is one more than the tensor has: where the batch is does
    not matter, as it has one sample.
    """
    found = [structures.get(output, path) for path in structures.outputs(output).values()]
    if not found:
        raise FaultError(
            "the model returns no tensor, so that no output can be compared: let it return one"
        )
    return [(x.dequantize() if x.is_quantized else x)[None] for x in found]
