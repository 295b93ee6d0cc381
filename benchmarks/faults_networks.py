"""The two networks in which faults are injected, and their data."""

from __future__ import annotations

import torch

from sklearn.datasets import load_digits
from torch import nn


def lenet(epochs: int = 8) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """Train a LeNet of 18,000 parameters on sklearn's 8x8 digits."""
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(digits.target)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 96),
        nn.ReLU(),
        nn.Linear(96, 10),
    )
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    for _ in range(epochs):
        for part in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images[part]), labels[part]).backward()
            optimizer.step()
    return net.eval(), images, labels


class Block(nn.Module):
    """A residual block of two convolutions."""

    def __init__(self, wide_in: int, wide: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(wide_in, wide, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(wide)
        self.conv2 = nn.Conv2d(wide, wide, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(wide)
        self.relu = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or wide_in != wide:
            self.shortcut = nn.Sequential(
                nn.Conv2d(wide_in, wide, 1, stride, bias=False), nn.BatchNorm2d(wide)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Add what the convolutions make of the input to it."""
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(y + self.shortcut(x))


def resnet(samples: int = 64) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """Make a ResNet-20 of 272,000 parameters for 3x32x32 inputs, random ones.

    It is not trained, which does not matter to speed; its normalisations have seen the data.
    """
    torch.manual_seed(0)
    blocks: list[nn.Module] = []
    wide_in = 16
    for wide, first in ((16, 1), (32, 2), (64, 2)):
        for stride in (first, 1, 1):
            blocks.append(Block(wide_in, wide, stride))
            wide_in = wide
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, 1, 1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )
    images = torch.randn(samples, 3, 32, 32)
    with torch.no_grad():
        for _ in range(20):
            net(images)
    return net.eval(), images, torch.zeros(samples, dtype=torch.long)
