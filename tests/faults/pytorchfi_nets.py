"""The network whose draws by PyTorchFI were recorded, and what its tests share."""

from __future__ import annotations

import torch

from torch import nn


SHAPE = [3, 8, 8]
BOTH = [nn.Conv2d, nn.Linear]


def drawn_from():
    torch.manual_seed(3)
    convs = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 3, stride=2), nn.ReLU()]
    return nn.Sequential(*convs, nn.Flatten(), nn.Linear(6 * 3 * 3, 10)).eval()


IMAGES = torch.linspace(-1, 1, 4 * 3 * 8 * 8).reshape(4, *SHAPE)


def run(model, *inputs):
    with torch.no_grad():
        return model(*inputs)


def same(left, right):
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def site_with(**changes):
    site = {"batch": [0], "layer_num": [0], "dim1": [0], "dim2": [0], "dim3": [0], "value": [1]}
    return site | changes
