r"""How many bits of each layer stand in harm's way, and for how long.

The fault model is named, and is the only one for which these numbers hold: upsets strike
uniformly over bits and time, and only storage that is modelled counts, which is what layers
give (`outputs`) and own (parameters and buffers).  Exposure is
:math:`E_i = \sum_c B_{i,c} \tau_{i,c}`, bits times the time that they are resident, over the
calls c of layer i; its share :math:`W_i = E_i / \sum_j E_j` weights the layer's vulnerability.
There is no failure rate here: that needs an upset rate, which nobody but the user can know.

Sources
-------
* Mukherjee et al., "A systematic methodology to compute the architectural vulnerability
  factors for a high-performance microprocessor", MICRO 2003: a bit's vulnerability is the part
  of its time for which its contents matter, from when it is written to when it is last read.
* Schirmeier, Borchert, Spinczyk, "Avoiding pitfalls in fault-injection based comparison of
  program susceptibility to soft errors", DSN 2015: exposure is bits times run time, and a
  variant that runs longer has more of it, which percentages hide.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np
import pandas as pd
import torch

from pystack_nb.errors import FaultError
from pystack_nb.faults.annotate import KIND, example
from pystack_nb.faults.data import device_of
from pystack_nb.faults.exposure_noise import keep
from pystack_nb.faults.identity import chosen
from pystack_nb.faults.layers import ROOT, layers, listed
from pystack_nb.faults.liveness import Liveness, liveness


if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pystack_nb.faults.liveness import CallOf
    from pystack_nb.recording import Recording

    Seconds = NDArray[np.float64]

Model = Literal["busy", "live", "uniform-bits", "macs"]
_COLUMNS = ["layer", "role", "bits", "seconds", "bit_seconds", "bit_seconds_sd"]
_NS = 1e-9


def exposure(
    rec: Recording,
    model: torch.nn.Module,
    model_of: Model = "busy",
    inputs: Any = None,
    runs: slice | None = None,
) -> pd.DataFrame:
    r"""Compute the exposure of each layer's storage from recorded forwards.

    Parameters
    ----------
    rec : Recording
        Of forwards under `annotate`, also of several models.
    model : torch.nn.Module
        The same model, in the mode that it was recorded in; for a saved recording one of the
        same layers and shapes.  It runs once, on inputs of the recorded shapes, to see which
        storage is whose; it is left as it was.
    model_of : {"busy", "live", "uniform-bits", "macs"}, optional
        For how long bits are resident.  With :math:`T` the time of one forward:

        * ``"busy"``: outputs while their layer runs, weights while a layer runs that reads
          them; :math:`\tau` is the wall time of its calls without that of the layers within.
          Right for storage that is filled anew for each layer, such as caches and on-chip
          buffers.  A small layer's time is mostly Python's and that of hooks.
        * ``"live"``: outputs from the end of the call that wrote them to the end of the last
          one that reads them, also across skip connections (Mukherjee 2003), and the model's
          own until it ends; weights :math:`\tau = T`.  Right for main memory.
        * ``"uniform-bits"``: :math:`\tau = T` for all, so that shares are those of bits.
        * ``"macs"``: as ``"busy"``, with :math:`T` shared out by multiply-accumulates in place
          of measured time.  Refused where PyTorch does not count those of a layer: recurrent
          ones, and attention in its fused form.

        They rank layers differently: where a conclusion depends on which, say so.
    inputs : tensor, tuple or dict, optional
        What ``model(...)`` takes, a dict for keyword arguments.  Needed where the recording
        does not tell their shapes, since something else than tensors, numbers and text is
        among them; then all forwards are taken for such ones.
    runs : slice, optional
        Which stretch of forwards to take, in order of time; ``slice(3, None)`` leaves out the
        first three.

    Returns
    -------
    pandas.DataFrame
        A row for each output and weight, summed over the layer's calls: ``layer role``,
        ``bits`` (of a whole batch: record batches of the size in use), ``seconds`` (resident
        per forward, weighted by bits), ``bit_seconds``, their product and the mean over
        forwards, and ``bit_seconds_sd``, the standard deviation over forwards (NaN for one).
        What has no storage of its own (`Identity`, views, a container that gives what its last
        layer gave, a weight that another layer has, too) has 0 bits.  ``attrs`` has
        ``model_of``, ``forwards``, how many were used, ``left_out``, how many recorded ones were
        not (of other shapes or layers, broken off, or not among `runs`), and
        ``forward_seconds``, the mean T; of several forwards also ``bit_seconds_of_forwards``,
        for each row ``(layer, role, (those of each forward))``, which tells what rows have in
        common.  `to_parquet` writes it into the file's metadata, of which readers take 100 MB:
        pop it first where rows times forwards are some millions.

    Raises
    ------
    FaultError
        If the recording has no whole forward of this model, or of several alike, none of which
        is this object; or there is no such `model_of`; or it is ``"busy"`` or ``"live"``, and
        the model ran on an accelerator that was not waited for, so that spans are launch times.

    Notes
    -----
    Seconds are those of the recorded forwards, in which the spans themselves cost some
    microseconds a layer, and recorded calls more: record with ``mode="sample"``, and where
    layers take microseconds, read shares rather than seconds.

    Of several forwards each number is the mean, not the median: in a forward that something held
    up bits do stand in harm's way for longer, and only means of layers add up to the whole.  One
    such forward among few decides the shares, which ``bit_seconds_sd`` shows and
    `Campaign.reweight` takes into its intervals, with what layers have in common; `runs` takes a
    stretch without it.

    An output that is written within a container, between its layers, counts from the end of that
    stretch between layers on.  Outputs that no layer gives, such as a sum that is the argument
    of the next layer, are not modelled; nor is what gradients keep.

    `sites`, whose elements a `Campaign` draws from, takes a view that a layer gives (`Flatten`)
    for a tensor of its own, with as many bits; here it has none, and no share.  So with
    ``"uniform-bits"`` too, the reweighted total of a model with such a layer differs a little
    from the campaign's own: faults in the view count with those of the tensor that it shows
    there, and not at all here.
    """
    if model_of not in get_args(Model):
        raise FaultError(
            f"there is no exposure model {model_of!r}: choose {listed(get_args(Model))}"
        )
    if not isinstance(model, torch.nn.Module):
        raise FaultError(f"{type(model).__name__} is no torch.nn.Module: pass the model itself")
    if not isinstance(runs, slice | None):
        raise FaultError(f"runs={runs!r:.60} is no slice: pass one, as slice(1, None)")
    forwards = _Forwards(rec, model)
    if model_of in {"busy", "live"}:
        forwards.refuse_launch_times(model_of)
    if inputs is None:
        text = forwards.keep_commonest()
        args, kwargs = example(text, device_of(model, torch.device("cpu")))
    else:
        args, kwargs = _arguments(inputs)
    seen = liveness(model, args, kwargs, grad=forwards.grad)
    if model_of == "macs":
        _refuse_uncounted(seen, model)
    moments = forwards.moments(seen)[runs or slice(None)]
    if not len(moments):
        raise FaultError(
            f"runs={runs} leaves none of the {forwards.used} recorded forwards: take more"
        )
    table = _summed(seen, moments, model_of)
    table.attrs |= {
        "model_of": model_of,
        "forwards": len(moments),
        "left_out": forwards.all - len(moments),
        "forward_seconds": float((moments[:, -1] - moments[:, 0]).mean() * _NS),
    }
    return table


class _Forwards:
    """The recorded forwards of a model.

    Attributes
    ----------
    all : int
        How many there are, those that were broken off, too.
    used : int
        How many of them are of the shapes, and ran the layers, that are looked at.
    """

    def __init__(self, rec: Recording, model: torch.nn.Module) -> None:
        events = getattr(rec, "events", None)
        if not isinstance(events, pd.DataFrame):
            raise FaultError(
                f"{type(rec).__name__} is no recording: pass what %%pystack gave, or load(path)"
            )
        events = events[events["kind"] == KIND]
        if not len(events):
            raise FaultError(
                "the recording has no events of layers: run the model in"
                " `with faults.annotate(model):`, and record its own process, with %%pystack or"
                " PyStackProfiler, for `pystack-nb record` sees no events"
            )
        owner = [x.get("model") for x in events["args"]]
        told = {x for x in owner if x is not None}
        mine = {None, *(chosen(model, told) if told else ())}
        self._events = events[[x in mine for x in owner]].reset_index(drop=True)
        args = self._events["args"]
        self._call = np.array([int(x.get("call", 0)) for x in args])
        broken = np.array(["raised" in x or x.get("complete") is False for x in args])
        # A model that calls itself has further calls, within the one that is a forward.
        whole = (self._events["name"] == ROOT) & (self._call == 0)
        roots = self._events[whole & ~broken]
        if not len(roots):
            raise FaultError(
                "the recording has no whole forward of the model itself: call the model, and not"
                " its layers, in `with faults.annotate(model):`, and end the recording after it"
            )
        self._roots = roots
        self.all, self.used = int(whole.sum()), len(roots)

    @property
    def grad(self) -> bool:
        """Whether gradients were recorded in them."""
        return bool(self._roots["args"].iloc[0].get("grad", False))

    def refuse_launch_times(self, model_of: Model) -> None:
        """Refuse spans that ended before what they launched had run."""
        devices = {str(x.get("device", "cpu")) for x in self._events["args"]} - {"cpu"}
        if devices and not all(x.get("synchronized") for x in self._roots["args"]):
            raise FaultError(
                f"the model ran on {listed(sorted(devices))} and nobody waited for it, so that"
                f" spans are times of launching, which {model_of!r} can't use: record again in"
                " `with faults.annotate(model, synchronize=True):`, or choose 'uniform-bits'"
            )

    def keep_commonest(self) -> str:
        """Leave out all but the forwards of the commonest shapes of inputs; return these."""
        texts: list[str | None] = [x.get("inputs") for x in self._roots["args"]]
        known = [x for x in texts if x is not None]
        if not known:
            raise FaultError(
                "the recording does not tell what the model was given: pass inputs=, an example"
                " of the same shapes, a tuple or a dict of keyword arguments"
            )
        commonest = max(dict.fromkeys(known), key=known.count)
        self._roots = self._roots[[x == commonest for x in texts]]
        return commonest

    def moments(self, seen: Liveness) -> Seconds:
        """Give the time of each moment in each forward, ns.

        Returns
        -------
        numpy.ndarray of float64, shape (forwards, moments)
        """
        calls = [call for call, is_end in seen.moments if not is_end]
        place = {call: n for n, call in enumerate(calls)}
        columns = [place[call] + is_end * len(calls) for call, is_end in seen.moments]
        events, rows = self._events, []
        names, thread = events["name"].tolist(), events["tid"].to_numpy()
        begun = events["ts_ns"].to_numpy()
        ended = begun + events["dur_ns"].to_numpy()
        number = [place.get(x, -1) for x in zip(names, self._call.tolist(), strict=True)]
        numbers = np.array(number)
        for root in self._roots.index:
            # Sorted by time, as a Recording makes sure.
            first, last = np.searchsorted(begun, [begun[root], ended[root] + 1])
            within = np.arange(first, last)
            within = within[(thread[within] == thread[root]) & (ended[within] <= ended[root])]
            if np.array_equal(np.sort(numbers[within]), np.arange(len(calls))):
                times = np.empty(2 * len(calls))
                times[numbers[within]] = begun[within] - begun[root]
                times[numbers[within] + len(calls)] = ended[within] - begun[root]
                rows.append(times[columns])
        if not rows:
            raise FaultError(
                "the recorded forwards ran other layers than this model does: pass the model"
                " that was recorded, in the same mode, and as inputs= what it was given"
            )
        self.used = len(rows)
        return np.array(rows)


class _Part(NamedTuple):
    """Bits of a layer's role, and how long they were resident in each forward, ns."""

    layer: str
    role: str
    bits: int
    resident: Seconds


def _summed(seen: Liveness, moments: Seconds, model_of: Model) -> pd.DataFrame:
    order = {layer: n for n, (layer, _) in enumerate(dict.fromkeys(seen.segments))}
    found: dict[tuple[str, str], tuple[int, Seconds]] = {}
    for part in _parts(seen, moments, model_of):
        bits, bit_ns = found.get((part.layer, part.role), (0, np.zeros(len(moments))))
        found[part.layer, part.role] = (bits + part.bits, bit_ns + part.bits * part.resident)
    sites = sorted(found, key=lambda site: order.get(site[0], len(order)))
    rows = []
    for layer, role in sites:
        bits, bit_ns = found[layer, role]
        mean = float(bit_ns.mean()) * _NS
        sd = float(bit_ns.std(ddof=1)) * _NS if len(bit_ns) > 1 else np.nan
        rows.append((layer, role, bits, mean / bits if bits else 0.0, mean, sd))
    table = pd.DataFrame(rows, columns=_COLUMNS)
    if len(moments) > 1:
        keep(table, np.array([found[site][1] * _NS for site in sites]))
    return table


def _parts(seen: Liveness, moments: Seconds, model_of: Model) -> list[_Part]:
    whole = moments[:, -1] - moments[:, 0]
    if model_of == "live":
        outputs = [
            # From the end of the segment that wrote it to that of the last one that read it.
            moments[:, x.last_read + 1] - moments[:, x.born + 1]
            for x in seen.outputs
        ]
        weights = [whole for _ in seen.weights]
    elif model_of == "uniform-bits":
        outputs, weights = [whole for _ in seen.outputs], [whole for _ in seen.weights]
    else:
        busy = _own_times(seen, moments) if model_of == "busy" else _shared_out(seen, whole)
        none = np.zeros(len(moments))
        outputs = [busy.get(x.call, none) for x in seen.outputs]
        weights = [sum((busy.get(c, none) for c in x.readers), none) for x in seen.weights]
    parts = [
        _Part(x.call[0], x.role, x.bits, resident)
        for x, resident in zip(seen.outputs, outputs, strict=True)
    ]
    return parts + [
        _Part(x.layer, x.role, x.bits, resident)
        for x, resident in zip(seen.weights, weights, strict=True)
    ]


def _own_times(seen: Liveness, moments: Seconds) -> dict[CallOf, Seconds]:
    times: dict[CallOf, Seconds] = {}
    for call, lasted in zip(seen.segments, np.diff(moments, axis=1).T, strict=True):
        times[call] = times.get(call, 0) + lasted
    return times


def _refuse_uncounted(seen: Liveness, model: torch.nn.Module) -> None:
    """Refuse to share out time where some layers' work is not known."""
    multiply = (torch.nn.RNNBase, torch.nn.RNNCellBase, torch.nn.MultiheadAttention)
    there = layers(model)
    uncounted = {
        layer
        for layer, _ in seen.segments
        if layer in there
        and isinstance(there[layer].module, multiply)
        and not any(macs for call, macs in seen.macs.items() if _within(call[0], layer))
    }
    if uncounted:
        raise FaultError(
            f"PyTorch does not count the multiply-accumulates of {listed(sorted(uncounted))}:"
            " choose another model_of, such as 'busy'"
        )


def _within(layer: str, outer: str) -> bool:
    return layer == outer or layer.startswith(f"{outer}.")


def _shared_out(seen: Liveness, whole: Seconds) -> dict[CallOf, Seconds]:
    total = sum(seen.macs.values())
    if not total:
        raise FaultError(
            "no layer of this model has multiply-accumulates that PyTorch counts: choose another"
            " model_of, such as 'busy'"
        )
    return {call: whole * (macs / total) for call, macs in seen.macs.items()}


def _arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, dict):
        return (), inputs
    return (tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)), {}
