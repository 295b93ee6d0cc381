"""A LeNet on sklearn's 8x8 digits, trained in a second or two, and its like in other numbers."""

from __future__ import annotations

import copy
import functools

import torch

from sklearn.datasets import load_digits
from torch import nn


LAYERS = ("c1", "c2", "f1", "f2")
TRAINED_ON = 1297  # images; faults strike while the network looks at the others


@functools.cache
def images():
    """Give all images, numbers between 0 and 1, and their digits, in the order of the file."""
    digits = load_digits()
    return torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16, torch.tensor(
        digits.target
    )


def held_out(dtype=torch.float32):
    """Give a hundred images that the network was not trained on, for a campaign."""
    pictures, labels = images()
    return pictures[TRAINED_ON:][:100].to(dtype), labels[TRAINED_ON:][:100]


def seen():
    """Give what the network was trained on, without labels."""
    return images()[0][:TRAINED_ON]


class LeNet(nn.Module):
    """Two convolutions and two linear layers, of 18,000 parameters."""

    def __init__(self, norm):
        super().__init__()
        self.c1 = nn.Conv2d(1, 16, 3, padding=1)
        self.n1 = nn.BatchNorm2d(16) if norm else nn.Identity()
        self.c2 = nn.Conv2d(16, 32, 3, padding=1)
        self.n2 = nn.BatchNorm2d(32) if norm else nn.Identity()
        self.f1 = nn.Linear(128, 96)
        self.f2 = nn.Linear(96, 10)
        self.r1, self.r2, self.r3 = nn.ReLU(), nn.ReLU(), nn.ReLU()
        self.pool = nn.MaxPool2d(2)

    def forward(self, x):
        x = self.pool(self.r1(self.n1(self.c1(x))))
        x = self.pool(self.r2(self.n2(self.c2(x))))
        return self.f2(self.r3(self.f1(x.flatten(1))))


@functools.cache
def trained(*, norm=False, seed=0):
    """Train a network: always the same for a seed, on one thread.  Take it as read-only."""
    pictures, labels = seen(), images()[1][:TRAINED_ON]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            net = LeNet(norm)
            optimizer = torch.optim.Adam(net.parameters(), 2e-3)
            for _ in range(8):
                for part in torch.randperm(len(pictures)).split(64):
                    optimizer.zero_grad()
                    nn.functional.cross_entropy(net(pictures[part]), labels[part]).backward()
                    optimizer.step()
    finally:
        torch.set_num_threads(threads)
    return net.eval().requires_grad_(False)


class Stored(nn.Module):
    """A layer that keeps its weight in another type and computes in single precision.

    Symmetric 8-bit integers have the largest weight as 127.
    """

    def __init__(self, layer, dtype):
        super().__init__()
        self.layer, self.scale = copy.deepcopy(layer), 1.0
        weight = self.layer.weight
        if dtype is torch.int8:
            self.scale = float(weight.abs().max()) / 127
            weight = (weight / self.scale).round()
        self.register_buffer("weight", weight.to(dtype))

    def forward(self, x):
        weight = self.weight.float() * self.scale
        return torch.func.functional_call(self.layer, {"weight": weight}, (x,))


def stored_as(dtype, **options):
    """Give a trained network whose layers keep their weights in another type."""
    net = copy.deepcopy(trained(**options))
    for name in LAYERS:
        setattr(net, name, Stored(getattr(net, name), dtype))
    return net.eval()
