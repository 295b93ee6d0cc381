"""Transformer encoders that keep a batch's padding while layers are looked at.

In eval mode `torch.nn.TransformerEncoder` packs a batch that has a padding mask into a nested
tensor, which has no shape, few operations, and no places for faults.  Here the layers get the
padded batch and its mask instead, which gives each token the same number but for rounding; at
the end padding becomes zero where unpacking would have made it so.
"""

from __future__ import annotations

import inspect
import threading

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch

from torch import nn

from pystack_nb.faults.hooks import Hook, unhook


if TYPE_CHECKING:
    from collections.abc import Iterator

_kept: WeakKeyDictionary[nn.TransformerEncoder, _Encoder] = WeakKeyDictionary()
_changing = threading.Lock()


@contextmanager
def padded(model: nn.Module) -> Iterator[None]:
    """Keep all encoders of a model from making nested tensors.

    Any number of these may be open for a model, in any threads, and end in any order.  A copy
    that is made meanwhile, or a pickled one, packs as the model does by itself.
    """
    user = object()
    encoders = [x for x in model.modules() if isinstance(x, nn.TransformerEncoder)]
    with ExitStack() as undo:
        for _ in ("once", "again where the first one was interrupted"):
            undo.callback(_leave, encoders, user)
        for module in encoders:
            with _changing:
                encoder = _kept.get(module)
                if encoder is None and not getattr(module, "use_nested_tensor", False):
                    continue
                is_first = encoder is None
                if encoder is None:
                    encoder = _kept[module] = _Encoder(module)
                encoder.users.append(user)
                if is_first:
                    encoder.begin(module)
        yield


def _leave(encoders: list[nn.TransformerEncoder], user: object) -> None:
    for module in encoders:
        with _changing:
            encoder = _kept.get(module)
            if encoder is None:
                continue
            encoder.users = [x for x in encoder.users if x is not user]
            if not encoder.users:
                encoder.end(module)
                del _kept[module]


class _Running(threading.local):
    def __init__(self) -> None:
        self.padding: list[torch.Tensor | None] = []


class _Off:
    """A switch that is off, and whose copies are what it was before."""

    def __init__(self, before: bool) -> None:
        self._before = before

    def __bool__(self) -> bool:
        return False

    def __reduce__(self) -> tuple[type[bool], tuple[bool]]:
        return bool, (self._before,)


class _Encoder:
    """What keeps the padding of one encoder while somebody looks at it."""

    def __init__(self, module: nn.TransformerEncoder) -> None:
        self.users: list[object] = []
        self._packs = module.use_nested_tensor
        self._hooks: list[tuple[nn.Module, Hook]] = []
        # The padding of the forwards that run in a thread; None where nothing would be packed.
        self._running = _Running()

    def begin(self, module: nn.TransformerEncoder) -> None:
        """Make the encoder keep padding.  If an interrupt comes, call `end`."""
        begin, end, normalise = Hook(self._begin), Hook(self._end), Hook(self._normalise)
        module.use_nested_tensor = _Off(self._packs)  # type: ignore[assignment]
        self._hooks += (module, begin), (module, end)
        module.register_forward_pre_hook(begin, with_kwargs=True)
        module.register_forward_hook(end, prepend=True, always_call=True)
        if module.norm is not None:
            # Padding becomes zero before it is normalised.
            self._hooks.append((module.norm, normalise))
            module.norm.register_forward_pre_hook(normalise, prepend=True)

    def end(self, module: nn.TransformerEncoder) -> None:
        """Leave it as it was.  This may be called again, after it was interrupted."""
        while self._hooks:
            unhook(*self._hooks[-1])
            self._hooks.pop()
        module.use_nested_tensor = self._packs

    def _begin(
        self, module: nn.TransformerEncoder, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self._running.padding.append(_padding(module, args, kwargs))

    def _end(self, module: nn.TransformerEncoder, _: tuple[Any, ...], output: Any) -> Any:
        padding = self._running.padding.pop() if self._running.padding else None
        return None if module.norm is not None else _without(padding, output)

    def _normalise(self, _: nn.Module, args: tuple[Any, ...]) -> Any:
        padding = self._running.padding[-1] if self._running.padding else None
        return (_without(padding, args[0]), *args[1:]) if args else None


def _without(padding: torch.Tensor | None, tokens: Any) -> Any:
    """Make padding zero."""
    if padding is None or tokens is None or padding.shape != tokens.shape[:2]:
        return tokens
    return tokens.masked_fill(padding[..., None], 0.0)


def _padding(
    encoder: nn.TransformerEncoder, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> torch.Tensor | None:
    """Give the padding of a batch that the encoder would pack, by its own conditions."""
    try:
        given = inspect.signature(nn.TransformerEncoder.forward).bind(encoder, *args, **kwargs)
    except TypeError:
        return None  # the forward is going to say it
    src, mask = given.arguments["src"], given.arguments.get("src_key_padding_mask")
    first = encoder.layers[0]
    if (
        mask is None
        or given.arguments.get("mask") is not None
        or src.dim() != 3
        or first.training
        or not torch.backends.mha.get_fastpath_enabled()
        or torch.is_autocast_enabled()
        or (torch.is_grad_enabled() and any(x.requires_grad for x in (src, *first.parameters())))
    ):
        return None
    tokens: torch.Tensor = mask.logical_not()
    checked = getattr(encoder, "mask_check", True)
    if checked and not torch._nested_tensor_from_mask_left_aligned(src, tokens):  # noqa: SLF001
        return None
    return ~tokens
