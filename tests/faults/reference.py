"""The slowest and most obvious way to evaluate faults: what faster ways must equal.

One fault, one sample, copied out of the others, one forward of the whole model; weights are
patched and restored around it, activations are changed by a hook.  Nothing is shared with the
engine but the metrics and the reading and writing of stored bits.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import torch

from pystack_nb.faults import bits, layers, structures
from pystack_nb.faults.metrics import Exact, Tolerance, as_metric


class ReferenceEngine:
    """Has the face of `engine.Engine`."""

    def __init__(self, model, data, metric, batch_size=None, weight_samples=None):
        del batch_size
        self.model, self.data, self.metric = model, data, metric
        self.weight_samples = weight_samples

    def evaluate(self, faults):
        return evaluate(self.model, self.data, faults, self.metric, self.weight_samples)


def evaluate(model, data, faults, metric, weight_samples=None):
    """Give ``fault outcome before after score`` of each fault.

    `data` has ``inputs``, a list of tensors with the samples along dimension 0, and ``labels``,
    a tensor or None.  A number that is not finite where it should be is a DUE, and so is an
    exception; otherwise the first floating tensor of the output is judged, by `Exact` and
    `Tolerance` all of them.  With
    `weight_samples` a weight fault is tried on so many samples, from the first one on: the
    worst outcome counts, and the mean of the scores.
    """
    metric, rows = as_metric(metric), []
    for fault in faults.to_dict("records"):
        several = fault["kind"] == "weight" and weight_samples
        samples = range(weight_samples) if several else [fault["sample"]]
        found = [_one(model, data, fault, metric, sample) for sample in samples]
        outcome = max((x[0] for x in found), key=["masked", "SDC", "DUE"].index)
        score = float(np.mean([x[3] for x in found]))
        rows.append((fault["fault"], outcome, found[0][1], found[0][2], score))
    return pd.DataFrame(rows, columns=["fault", "outcome", "before", "after", "score"])


def _one(model, data, fault, metric, sample):
    # Copied: where a sample lies in memory can change the rounding of a product.
    inputs = [x[sample : sample + 1].clone() for x in data.inputs]
    label = None if data.labels is None else data.labels[sample : sample + 1]
    seen = []
    with torch.no_grad():
        golden = _tensors(model(*inputs))
        try:
            run = _with_weight if fault["kind"] == "weight" else _with_neuron
            faulty = _tensors(run(model, inputs, fault, seen))
        except Exception:
            if not seen:
                raise
            return "DUE", *seen, math.nan
    for good, bad in zip(golden, faulty, strict=True):
        if bad.is_floating_point() and (good.isfinite() & ~bad.isfinite()).any():
            return "DUE", *seen, math.nan
    if isinstance(metric, Exact | Tolerance):
        verdicts = [metric.judge(*pair, label) for pair in zip(golden, faulty, strict=True)]
    else:
        judged = next((i for i, x in enumerate(golden) if x.is_floating_point()), 0)
        verdicts = [metric.judge(golden[judged], faulty[judged], label)]
    scores = [float(x.score[0]) for x in verdicts]
    score = sum(scores) if isinstance(metric, Exact) else max(scores)
    return "SDC" if any(x.changed[0] for x in verdicts) else "masked", *seen, score


def _with_weight(model, inputs, fault, seen):
    slot = layers.layers(model)[fault["layer"]].slot(fault["role"])
    tensor = slot.open()
    kept = bits.stored(tensor).clone()
    _strike(tensor, fault, seen)
    slot.close(tensor)
    try:
        return model(*inputs)
    finally:
        bits.stored(tensor).copy_(kept)
        slot.close(tensor)


def _with_neuron(model, inputs, fault, seen):
    module, calls = layers.layers(model)[fault["layer"]].module, []

    def struck(value, found):
        calls.append(None)
        if len(calls) - 1 != fault["call"]:
            return None
        path = found[structures.resolve(fault["role"], found)]
        tensor = structures.get(value, path).clone()
        _strike(tensor, fault, seen)
        return structures.replaced(value, path, tensor)

    def before(_module, args, kwargs):
        return struck((args, kwargs), structures.inputs(args, kwargs))

    def after(_module, _args, output):
        return struck(output, structures.outputs(output))

    if fault["role"].startswith("input"):
        handle = module.register_forward_pre_hook(before, with_kwargs=True)
    else:
        handle = module.register_forward_hook(after)
    try:
        return model(*inputs)
    finally:
        handle.remove()


def _strike(tensor, fault, seen):
    # With one sample the batch dimension has the size 1, wherever it is, so that the flat
    # index is the same with and without it.
    at = np.array([fault["element"]])
    masks = [np.array([fault[x]], np.uint64) for x in ("and_mask", "or_mask", "xor_mask")]
    seen.append(_number(tensor, fault["element"]))
    bits.change(tensor, at, *masks)
    seen.append(_number(tensor, fault["element"]))


def _number(tensor, element):
    plain = tensor.int_repr() if tensor.is_quantized else tensor
    return float(plain.reshape(-1)[element])


def _tensors(output):
    found = [structures.get(output, path) for path in structures.outputs(output).values()]
    # A model may have dropped the dimension of its only sample.
    return [x if 1 in x.shape else x[None] for x in found]
