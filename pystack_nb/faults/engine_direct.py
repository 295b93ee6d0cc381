"""The slow way: one fault, one sample, one forward of the model itself.

For models that are no fixed list of operations, and for tensors without a row per sample.
Each forward finds buffers and attributes as the first one found them, so that no outcome
depends on which faults came before.
"""

from __future__ import annotations

import random

from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pystack_nb.errors import FaultError
from pystack_nb.faults import structures
from pystack_nb.faults.blame import check_blame
from pystack_nb.faults.data import Inputs
from pystack_nb.faults.engine_trace import hooked
from pystack_nb.faults.state import accelerator_generators, untouched


if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pystack_nb.faults.engine_seeded import SeededWeight
    from pystack_nb.faults.engine_trace import Site
    from pystack_nb.faults.engine_trials import Ints, Outputs, Trials
    from pystack_nb.faults.engine_weights import Weight
    from pystack_nb.faults.layers import Layer


def check_chance(model: torch.nn.Module, inputs: Sequence[torch.Tensor]) -> None:
    """Raise a FaultError if a forward draws random numbers, by whichever generator."""
    # Something else in this process may draw now and then, but not each time.
    for _ in range(3):
        before = _generators()
        forward(model, inputs)
        if _generators() == before:
            return
    raise FaultError(
        "the model draws random numbers in its forward, so that there is no golden output to"
        " compare with: call model.eval(), and take other randomness out of it"
    )


def _generators() -> tuple[Any, ...]:
    legacy = np.random.get_state(legacy=True)  # noqa: NPY002 - the global one
    return (
        random.getstate(),
        *(x.tobytes() if isinstance(x, np.ndarray) else x for x in legacy),
        *(x.numpy().tobytes() for x in (torch.get_rng_state(), *accelerator_generators())),
    )


@contextmanager
def _alone(model: torch.nn.Module) -> Iterator[None]:
    # Generators are left alone: `check_chance` has seen that nothing is drawn.
    with torch.no_grad(), untouched(model, generators=False):
        yield


def forward(model: torch.nn.Module, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Run the golden forward of one sample; give the tensors of the output."""
    with _alone(model), hooked(model, lambda _, tensor: tensor):
        return tensors_of(Inputs.of(inputs).each(torch.clone).given_to(model))


def run_one(
    model: torch.nn.Module,
    inputs: Sequence[torch.Tensor],
    target: tuple[str, int, str] | Weight | SeededWeight,
    results: Trials,
    *,
    trial: int,
    outputs: Outputs,
) -> bool:
    """Run one trial with hooks, or with a weight struck.

    Parameters
    ----------
    target : tuple, Weight or SeededWeight
        Layer, call and role, or the weight.

    Returns
    -------
    bool
        Whether the forward ended without an exception.

    Raises
    ------
    FaultError
        If the forward did not reach the site, or the site has no such element.
    """
    trials, row = np.array([trial]), np.zeros(1, np.int64)
    reached = not isinstance(target, tuple)
    failed: list[Exception] = []

    def strike(at: Site, tensor: torch.Tensor) -> torch.Tensor:
        nonlocal reached
        if at[:3] != target:
            return tensor
        reached = True
        try:
            return _struck(target, tensor, results, trials)
        except Exception as error:
            failed.append(error)
            raise

    patch: Any = nullcontext() if isinstance(target, tuple) else target.struck(results, trial)
    leaves: list[torch.Tensor] = []
    raised: Exception | None = None
    with _alone(model), hooked(model, strike), patch:
        try:
            output = Inputs.of(inputs).each(torch.clone).given_to(model)
        except FaultError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a fault raises is its outcome
            raised = error
        else:
            leaves = tensors_of(output)
    if failed:
        # A mistake in how the fault was named, and nothing that the fault did.
        raise failed[0]
    if raised is not None:
        check_blame(raised, inputs[0].device)
        return False
    if not reached:
        raise FaultError(
            f"no forward reached {target}: take sites from faults.sites(model, *inputs), with"
            " inputs of the same kind"
        )
    outputs.add(trials, row, np.ones(1, bool), leaves)
    return True


def _struck(
    site: tuple[str, int, str], tensor: torch.Tensor, results: Trials, trials: Ints
) -> torch.Tensor:
    changed = tensor.clone()
    if results.seeded is not None:
        results.seeded.strike(changed, results, int(trials[0]), weight=False)
        return changed
    check_elements(site, results.element[trials], tensor.numel())
    whole = changed if changed.is_quantized else changed[None]
    results.corrupt(whole, 0, np.zeros(1, np.int64), trials)
    return changed


def check_mode(found: Mapping[str, Layer]) -> None:
    """Raise a FaultError if a layer gives another output whenever it runs, or changes itself."""
    for name, layer in found.items():
        module = layer.module
        changes = isinstance(module, torch.nn.modules.batchnorm._NormBase)  # noqa: SLF001
        chance = "Dropout" in layer.type and getattr(module, "p", 0) > 0
        if module.training and (changes or chance):
            raise FaultError(
                f"layer {name!r} ({layer.type}) is in training mode, where an output depends on"
                " chance or on the batch: call model.eval()"
            )


def check_elements(site: tuple[Any, ...], element: Ints, count: int) -> None:
    """Raise a FaultError if a site has not all of these elements."""
    if len(element) and not (element.min() >= 0 and element.max() < count):
        raise FaultError(
            f"{site[0]!r} {site[2]} has {count} elements of a sample, and a fault strikes element"
            f" {element.max()}: take elements from faults.sites(model, *inputs), with inputs of"
            " one sample"
        )


def tensors_of(output: Any) -> list[torch.Tensor]:
    """Give the tensors in a model's output for one sample, each with a dimension of one row.

    The dimension comes first, as in what the program gives.  Of those that have one element it
    is the first; a tensor without any gets one.  They are copies: the model may give away what
    it keeps.
    """
    found = [structures.get(output, path) for path in structures.outputs(output).values()]
    if not found:
        raise FaultError(
            "the model returns no tensor, so that no output can be compared: let it return one"
        )
    return [as_row(x.dequantize() if x.is_quantized else x.clone()) for x in found]


def as_row(tensor: torch.Tensor) -> torch.Tensor:
    """Give a tensor of one sample's output with a dimension of one row first."""
    alone = [dim for dim, size in enumerate(tensor.shape) if size == 1]
    return tensor.movedim(alone[0], 0) if alone else tensor[None]
