"""Which sites of a model a campaign draws from."""

from __future__ import annotations

import sys

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pystack_nb.errors import CampaignError
from pystack_nb.faults import bits
from pystack_nb.faults.layers import layers
from pystack_nb.faults.sites import sites_of_a_sample


if TYPE_CHECKING:
    import torch

    from pystack_nb.faults.data import Inputs

PLACE = ["layer", "call", "role"]  # the columns that name a site
_SIMULATING = {
    "torch.ao.quantization.fake_quantize": "FakeQuantizeBase",
    "torch.ao.quantization.observer": "ObserverBase",
}
_KINDS = {"neurons": "neuron", "weights": "weight"}


def chosen_sites(model: torch.nn.Module, inputs: Inputs, chosen: Any) -> pd.DataFrame:
    """Give the sites that a campaign draws from, as one sample has them.

    Parameters
    ----------
    model : torch.nn.Module
        It runs on the first sample.
    inputs : Inputs
        The campaign's data.
    chosen : {"neurons", "weights"} or pandas.DataFrame or None
        See `Campaign`.

    Returns
    -------
    pandas.DataFrame
        As `sites_of_a_sample`, in its order, whichever order the chosen rows have.

    Raises
    ------
    CampaignError
        If nothing is chosen, or what the model has not.
    """
    table = isinstance(chosen, pd.DataFrame)
    if table and (missing := {*PLACE} - {*chosen}):
        raise CampaignError(
            f"this table of sites has no column {min(missing)!r}; pass rows of"
            " faults.sites(model, inputs)"
        )
    if table and (several := [x for x in PLACE if [*chosen].count(x) > 1]):
        raise CampaignError(f"this table of sites has several columns {several[0]!r}; leave one")
    if not (table or chosen is None or (isinstance(chosen, str) and chosen in _KINDS)):
        raise CampaignError(
            f'sites={chosen!r:.60} is unknown; pass "neurons", "weights" or rows of the table'
            ' of faults.sites(model, inputs), as table[table["layer"].isin(["conv1"])]'
        )
    # One sample, as faults are evaluated.  Copies: a forward may change its inputs.
    args, kwargs = inputs.each(lambda x: x[:1].clone()).arguments
    found = sites_of_a_sample(model, args, kwargs)
    if table:
        return _rows(found, chosen)
    # Integer tensors are indices and counters; each other tensor counts once.
    numbers = np.array([x.is_floating_point or x in bits.QUANTISED for x in found["dtype"]], bool)
    here = (found["kind"] == "weight") | found["role"].str.startswith("output")
    wanted = here & numbers & (found["bits"] > 0) & (found["same_as"] == "")
    wanted &= ~_simulated(model, found)
    if chosen is not None:
        wanted &= found["kind"] == _KINDS[chosen]
    if not wanted.any():
        raise CampaignError(
            f"the model has no {chosen or 'sites'} of floating point; pass some rows of"
            " faults.sites(model, inputs) as sites"
        )
    return found[wanted].reset_index(drop=True)


def _simulated(model: torch.nn.Module, found: pd.DataFrame) -> pd.Series:
    """Tell what is there for quantisation to be simulated, in no hardware.

    These are the parameters of fake quantisers and observers, and what they make of weights:
    what they make of activations stands for what is stored.
    """
    kinds = [
        kind
        for module, name in _SIMULATING.items()
        if (kind := getattr(sys.modules.get(module), name, None)) is not None
    ]
    names = [name for name, x in layers(model).items() if isinstance(x.module, tuple(kinds))]
    weights = (found["kind"] == "weight") | found["layer"].str.endswith("weight_fake_quant")
    return found["layer"].isin(names) & weights


def _rows(found: pd.DataFrame, chosen: pd.DataFrame) -> pd.DataFrame:
    # As text: in a file, layers of a `Sequential` look like numbers.
    named = set(zip(*(chosen[x].astype(str) for x in PLACE), strict=True))
    places = [*zip(*(found[x].astype(str) for x in PLACE), strict=True)]
    if strange := sorted(named.difference(places)):
        layer, call, role = strange[0]
        raise CampaignError(
            f"call {call} of layer {layer!r} has no {role!r} when the model runs on one sample of"
            " the data; pass rows of faults.sites(model, inputs[:1])"
        )
    if not named:
        raise CampaignError("this table of sites is empty; pass some rows of faults.sites(...)")
    return found[[place in named for place in places]].reset_index(drop=True)
