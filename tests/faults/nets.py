"""Small networks and tensors that the tests of faults share."""

from __future__ import annotations

import warnings

import torch


def quantised(values, dtype=torch.qint8, scale=0.05, zero_point=3):
    """Give a quantised tensor, without the warning that its kind is going to be replaced."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(torch.as_tensor(values), scale, zero_point, dtype)
