"""Small networks and tensors that the tests of faults share."""

from __future__ import annotations

import os
import warnings

import numpy as np
import torch

from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm


def quantised(values, dtype=torch.qint8, scale=0.05, zero_point=3):
    """Give a quantised tensor, without the warning that its kind is going to be replaced."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(torch.as_tensor(values), scale, zero_point, dtype)


def perceptron(seed=0, width=4):
    """Give a network of 3 inputs, 3 classes and few enough weights to try every bit."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = torch.nn.Sequential()
        net.add_module("first", torch.nn.Linear(3, width))
        net.add_module("relu", torch.nn.ReLU())
        net.add_module("last", torch.nn.Linear(width, 3))
    return net.eval()


def quantised_linear(inputs=3, outputs=3):
    """Give a layer whose weight is packed, in qint8."""
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        return torch.ao.quantization.quantize_dynamic(
            torch.nn.Sequential(torch.nn.Linear(inputs, outputs)), {torch.nn.Linear}
        ).eval()


def samples(count=8, shape=(3,), seed=1):
    """Give random inputs and labels of three classes."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, *shape, generator=generator)
    return inputs, torch.randint(3, (count,), generator=generator)


def first_tensor(value):
    """Give the first tensor of whatever a module gave."""
    while not isinstance(value, torch.Tensor):
        value = next(iter(value.values() if isinstance(value, dict) else value))
    return value


class Then(nn.Module):
    """A module, and something that goes on with what it gave."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *args, **kwargs):
        return self.go_on(self.inner(*args, **kwargs))

    @staticmethod
    def go_on(value):
        return first_tensor(value) * 3 - 1


class Dictionary(nn.Module):
    """Gives a dict with a tuple in it, and takes keyword arguments."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 4)

    def forward(self, x, *, scale, mask=None):
        y = self.linear(x) * scale
        return {"logits": y, "parts": (y + 1, [y.sum(1), "text"]), "mask": mask}


class Shared(nn.Module):
    """Runs one convolution twice, which also stands at a second path, and never another one."""

    def __init__(self):
        super().__init__()
        self.late = nn.Conv2d(4, 2, 3, padding=1)
        self.early = nn.Conv2d(4, 4, 3, padding=1)
        self.again = self.early
        self.unused = nn.Linear(2, 2)

    def forward(self, x):
        return self.late(torch.relu(self.again(torch.relu(self.early(x)))))


class Dies(nn.Module):
    """Ends its process, but for this one, where a number is huge."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.home = os.getpid()

    def forward(self, x):
        y = self.linear(x)
        if os.getpid() != self.home and y.abs().max() > 1e30:
            os._exit(1)
        return y


class Residual(nn.Module):
    """Adds its input, which a fault in the branch must not change."""

    def __init__(self):
        super().__init__()
        self.branch = nn.Identity()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.branch(x)
        return self.relu(y - 0.5) + x


def lenet():
    """Give a small convolutional network for 8x8 images, in evaluation mode."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 10),
    ).eval()


def kinds():
    """Give modules of every kind by name, each with arguments that it takes."""
    torch.manual_seed(0)
    r = torch.randn
    return {
        "linear": (nn.Linear(3, 4), (r(2, 3),)),
        "conv1d": (nn.Conv1d(2, 3, 3), (r(2, 2, 7),)),
        "conv2d": (nn.Conv2d(2, 3, 3), (r(2, 2, 5, 5),)),
        "conv3d": (nn.Conv3d(2, 3, 2), (r(2, 2, 3, 3, 3),)),
        "transposed1d": (nn.ConvTranspose1d(2, 3, 3), (r(2, 2, 5),)),
        "transposed2d": (nn.ConvTranspose2d(2, 3, 3), (r(2, 2, 4, 4),)),
        "transposed3d": (nn.ConvTranspose3d(2, 3, 2), (r(2, 2, 2, 2, 2),)),
        "batchnorm": (nn.BatchNorm2d(2), (r(2, 2, 3, 3),)),
        "layernorm": (nn.LayerNorm(4), (r(2, 4),)),
        "groupnorm": (nn.GroupNorm(2, 4), (r(2, 4, 3),)),
        "embedding": (nn.Embedding(5, 3), (torch.tensor([[0, 4], [2, 2]]),)),
        "lstm": (nn.LSTM(3, 4, batch_first=True), (r(2, 5, 3),)),
        "gru": (nn.GRU(3, 4, num_layers=2), (r(5, 2, 3),)),
        "attention": (nn.MultiheadAttention(4, 2, batch_first=True), (r(2, 3, 4),) * 3),
        "encoder": (
            nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True),
            (r(2, 3, 4),),
        ),
        "decoder": (
            nn.TransformerDecoderLayer(4, 2, 8, dropout=0.0, batch_first=True),
            (r(2, 3, 4), r(2, 5, 4)),
        ),
        "bilinear": (nn.Bilinear(2, 3, 4), (r(2, 2), r(2, 3))),
        "parametrised": (weight_norm(nn.Conv2d(2, 3, 3)), (r(2, 2, 5, 5),)),
        "spectral": (spectral_norm(nn.Linear(3, 4)), (r(2, 3),)),
        "sequential": (nn.Sequential(nn.Linear(3, 4), nn.ReLU()), (r(2, 3),)),
        "max pooling": (nn.MaxPool1d(2, return_indices=True), (r(2, 2, 6),)),
        "half": (nn.Linear(3, 4).half(), (r(2, 3).half(),)),
        "bfloat16": (nn.Linear(3, 4).bfloat16(), (r(2, 3).bfloat16(),)),
        "double": (nn.Linear(3, 4).double(), (r(2, 3).double(),)),
    }


def flipped(tensor, index, bit):
    """Flip a bit of an element of a copy, by Python's integers alone."""
    size, copy = tensor.element_size(), tensor.detach().clone().contiguous()
    memory = copy.flatten().view(torch.uint8).numpy()
    at = int(np.ravel_multi_index(index, tuple(tensor.shape))) * size
    number = int.from_bytes(memory[at : at + size].tobytes(), "little") ^ (1 << bit)
    memory[at : at + size] = list(number.to_bytes(size, "little"))
    return copy


def same_bits(first, second):
    """Tell whether two tensors hold the same bits, NaN included."""
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    both = (t.int_repr() if t.is_quantized else t for t in (first, second))
    both = (t.detach().contiguous().flatten().view(torch.uint8) for t in both)
    return torch.equal(*both)


def state(model):
    """Copy all parameters and buffers, to compare with `unchanged` later."""
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor.detach().clone() for name, tensor in named}


def unchanged(model, before):
    """Tell whether every stored bit is as it was, and no hook is left."""
    now = state(model)
    hooks = [
        hook
        for module in model.modules()
        for kind in ("_forward_hooks", "_forward_pre_hooks")
        for hook in getattr(module, kind).values()
    ]
    return not hooks and all(same_bits(now[name], before[name]) for name in before)
