"""Networks whose forwards go in many ways."""

from __future__ import annotations

import random

import torch

from torch import nn


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 3, 3, padding=1)
        self.conv2 = nn.Conv2d(3, 3, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Identity()

    def forward(self, x):
        return self.relu(self.conv2(self.relu(self.conv1(x))) + self.shortcut(x))


class InPlace(nn.Module):
    """Changes tensors that are also held elsewhere, by way of views, too."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.norm = nn.GroupNorm(2, 4)
        self.up = nn.ConvTranspose2d(4, 2, 2, 2)
        self.out = nn.Linear(8, 5)

    def forward(self, x):
        y = self.conv(x)
        z = self.relu(y) + y
        z[:, 0] = 0
        a, b = z.chunk(2, 1)
        a.add_(1)
        z = self.norm(z) * b.mean((1, 2, 3), keepdim=True)
        return self.out(nn.functional.adaptive_avg_pool2d(self.up(z), 2).flatten(1))


class Sequences(nn.Module):
    """Samples along the second dimension, tuples, attention, and a weight that is computed."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(4, 5, 2, bidirectional=True)
        self.encoder = nn.TransformerEncoderLayer(10, 2, 16)
        self.attention = nn.MultiheadAttention(10, 2)
        self.out = nn.utils.parametrizations.weight_norm(nn.Linear(10, 4))

    def forward(self, x):
        y = self.encoder(self.lstm(x.transpose(0, 1))[0])
        return self.out(self.attention(y, y, y)[0].mean(0))


class Shared(nn.Module):
    """Two inputs, one layer that runs twice, an Identity, and a dict."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 6)
        self.twice = nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6)
        self.same = nn.Identity()
        self.never = nn.Linear(6, 2)
        self.out = nn.Linear(6, 4)

    def forward(self, tokens, scale):
        y = self.embed(tokens).sum(1)
        z = self.twice(torch.relu(self.twice(y))) + self.same(y)
        z = self.norm(z) * scale[:, None]
        return {"logits": self.out(z), "hidden": (z,)}


class Looks(nn.Module):
    """Goes another way for other numbers."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x):
        y = self.linear(x)
        return y * 2 if y.sum() > 0 else -y


class Mixes(nn.Module):
    """Looks at the other samples of its batch."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x):
        y = self.linear(x)
        return y - y.mean(0)


class Remembers(nn.Module):
    """Changes a buffer, and gives another one in its place, with each forward."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.register_buffer("seen", torch.zeros(1))
        self.register_buffer("mean", torch.zeros(6))

    def forward(self, x):
        y = self.linear(x)
        self.seen += 1
        self.mean = 0.9 * self.mean + y.mean(0)
        return torch.where(self.seen % 3 == 0, -y, y) - self.mean


class Counts(nn.Module):
    """Remembers in an attribute."""

    def __init__(self, seen):
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.seen = seen

    def forward(self, x):
        y = self.linear(x)
        if isinstance(self.seen, list):
            self.seen.append(None)
            return -y if len(self.seen) % 2 else y
        self.seen += 1
        self.last = y
        return -y if self.seen % 7 < 3 and y.sum() > -9e9 else y


class Folds(nn.Module):
    """Folds the tokens of its samples into the batch."""

    def __init__(self):
        super().__init__()
        self.token = nn.Linear(4, 3)
        self.out = nn.Linear(3, 3)

    def forward(self, x):
        y = self.token(x.reshape(-1, 4))
        return self.out(y.view(*x.shape[:2], 3).mean(1))


class Rolls(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x):
        y = self.linear(x)
        return y * random.choice([1, 1, 2]) if y.sum() > -9e9 else y


class Both(nn.Module):
    """Gives classes, and numbers and places beside them."""

    def __init__(self):
        super().__init__()
        self.classes = nn.Linear(6, 3)
        self.numbers = nn.Linear(6, 4)

    def forward(self, x):
        y = self.numbers(x)
        return self.classes(x), y, y.argmax(1)


class Chance(nn.Module):
    def forward(self, x):
        return x + torch.rand_like(x)
