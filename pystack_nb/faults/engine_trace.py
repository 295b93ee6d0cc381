"""What one forward of a model does, as a list of tensor operations.

The forward runs once under a dispatch mode that sees each operation (in inference mode a
whole ``conv2d`` or ``linear``, so that to run it again runs the very same kernel), and with a
hook before and after each module.  A hook hands each tensor on as an alias of its own: what
uses the alias is what would see a corrupted copy, whatever else holds the original.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from threading import get_ident
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from pystack_nb.errors import FaultError
from pystack_nb.faults import structures
from pystack_nb.faults.data import Inputs
from pystack_nb.faults.hooks import unhook
from pystack_nb.faults.layers import layers
from pystack_nb.faults.state import at_the_end


if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence


# Ways of numbers out of a tensor that pass by the dispatcher.  A mode for functions would see
# them, too, but attention computes otherwise under one.
_WAYS_OUT = ("numpy", "tolist", "__array__", "__dlpack__")


class UntraceableError(Exception):
    """The forward is not the same list of operations for each input; the text says why."""


class Site(NamedTuple):
    """A tensor that a forward hook can change.

    Attributes
    ----------
    layer, call, role
        As in `sites`.
    once : bool
        Whether the layer takes or gives this tensor in one place only.
    """

    layer: str
    call: int
    role: str
    once: bool = True


@dataclass(frozen=True)
class Ref:
    """A tensor that an earlier step made, or an input."""

    id: int


@dataclass
class Step:
    """One operation, its arguments with each traced tensor replaced by a `Ref`."""

    op: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any
    site: Site | None = None


@dataclass
class Trace:
    """One forward.

    Attributes
    ----------
    steps : list of Step
        In the order in which they ran; those with a ``site`` make an alias.
    tensors : list of torch.Tensor
        By id; the first ones are the inputs.
    inputs : list of int
        Their ids.
    output : list of int
        The ids of the tensors that the model returned.
    """

    steps: list[Step] = field(default_factory=list)
    tensors: list[torch.Tensor] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    output: list[int] = field(default_factory=list)


def trace(model: torch.nn.Module, inputs: Sequence[torch.Tensor]) -> Trace:
    """Run a forward and write down what it does.

    Parameters
    ----------
    model : torch.nn.Module
        In eval mode.
    inputs : sequence of torch.Tensor
        Its arguments: positional, or `Inputs`.

    Raises
    ------
    UntraceableError
        If the forward looks at numbers in tensors, so that a fault may change its course.
    FaultError
        If it draws random numbers.
    """
    found = Trace()
    recorder = _Recorder(found)
    # Aliases, so that an input that is also a parameter or a buffer is not taken for it.
    given = Inputs.of(inputs).each(lambda x: x.view_as(x))
    with at_the_end(recorder.let_go):
        # A number that comes out of one of these would be the golden one for ever.
        recorder.keep_numbers_in((*model.parameters(), *model.buffers()))
        found.inputs = [recorder.number(tensor) for tensor in given]
        with torch.inference_mode(), hooked(model, recorder.mark), recorder:
            output = given.given_to(model)
            output = _of_their_own(output)
    for path in structures.outputs(output).values():
        tensor = structures.get(output, path)
        if not recorder.knows(tensor) or tensor.is_quantized:
            raise UntraceableError("the model's output is not made from its input")
        found.output.append(recorder.number(tensor))
    return found


def _of_their_own(output: Any) -> Any:
    """Copy those tensors of an output that show a part of some memory, or an element twice.

    Rows can be copied such that each lies in memory as it does by itself only of whole ones.
    """
    for path in structures.outputs(output).values():
        tensor = structures.get(output, path)
        whole = tensor.numel() * tensor.itemsize
        if tensor.storage_offset() or tensor.untyped_storage().nbytes() != whole:
            output = structures.replaced(output, path, tensor.clone())
    return output


@contextmanager
def hooked(
    model: torch.nn.Module, change: Callable[[Site, torch.Tensor], torch.Tensor]
) -> Iterator[None]:
    """Let a function see, and exchange, each tensor that a layer takes and gives."""
    calls: dict[str, int] = {}
    running: list[tuple[str, int]] = []

    def before(name: str) -> Callable[..., Any]:
        def hook(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            number = calls[name] = calls.get(name, -1) + 1
            running.append((name, number))
            given: Any = (args, kwargs)
            return _exchanged(given, structures.inputs(args, kwargs), name, number, change)

        return hook

    def after(name: str) -> Callable[..., Any]:
        def hook(_: torch.nn.Module, __: tuple[Any, ...], output: Any) -> Any:
            # A forward that failed within, and was caught there, has left no word.
            while running[-1][0] != name:
                running.pop()
            number = running.pop()[1]
            return _exchanged(output, structures.outputs(output), name, number, change)

        return hook

    with ExitStack() as undo:
        for name, layer in layers(model).items():
            module, first, last = layer.module, before(name), after(name)
            # Before they are there: an interrupt may come next.
            undo.callback(unhook, module, first)
            undo.callback(unhook, module, last)
            module.register_forward_pre_hook(first, with_kwargs=True)
            module.register_forward_hook(last)
        yield


def _exchanged(
    value: Any,
    found: dict[str, structures.Path],
    layer: str,
    call: int,
    change: Callable[[Site, torch.Tensor], torch.Tensor],
) -> Any:
    tensors = {role: structures.get(value, path) for role, path in found.items()}
    ids = [id(tensor) for tensor in tensors.values()]
    for role, tensor in tensors.items():
        # Tensors that are one and the same stay so: attention looks whether its query is its
        # key, and takes another way if not.
        once = ids.count(id(tensor)) == 1
        new = change(Site(layer, call, role, once), tensor)
        if new is not tensor:
            value = structures.replaced(value, found[role], new)
    return value


@dataclass
class _Tracing:
    """The thread that is traced, None when that is over.

    Beside the recorder, as a forward may copy tensors with all that is theirs.
    """

    thread: int | None


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, into: Trace) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._trace = into
        self._id_of: dict[int, int] = {}
        self._watched: list[torch.Tensor] = []
        self._tracing = _Tracing(get_ident())

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Nothing is compiled here, and to say so to Dynamo would import it: seconds.
        return False

    def number(self, tensor: torch.Tensor) -> int:
        """Give a tensor its id; the trace keeps it alive, so that it stays its own."""
        known = self._id_of.get(id(tensor))
        if known is None:
            known = self._id_of[id(tensor)] = len(self._trace.tensors)
            self._trace.tensors.append(tensor)
            self.keep_numbers_in([tensor])
        return known

    def keep_numbers_in(self, tensors: Iterable[torch.Tensor]) -> None:
        """Refuse this thread numbers out of tensors; what else has them goes on."""
        for tensor in tensors:
            self._watched.append(tensor)
            for name in _WAYS_OUT:
                way = getattr(type(tensor), name)
                setattr(tensor, name, partial(_refuse_numbers, self._tracing, name, way, tensor))

    def let_go(self) -> None:
        """Let numbers out of all tensors again."""
        self._tracing.thread = None
        for tensor in self._watched:
            for name in _WAYS_OUT:
                tensor.__dict__.pop(name, None)

    def knows(self, tensor: torch.Tensor) -> bool:
        return id(tensor) in self._id_of

    def refs(self, value: Any) -> Any:
        return pytree.tree_map(
            lambda x: (
                Ref(self._id_of[id(x)])
                if isinstance(x, torch.Tensor) and id(x) in self._id_of
                else x
            ),
            value,
        )

    def mark(self, site: Site, tensor: torch.Tensor) -> torch.Tensor:
        """Pass a tensor through a hook: as a new alias, if a step made it."""
        if not self.knows(tensor) or tensor.is_quantized or not site.once:
            return tensor
        with torch.utils._python_dispatch._disable_current_modes():  # noqa: SLF001
            alias = tensor.view_as(tensor)
        source = Ref(self.number(tensor))
        out = Ref(self.number(alias))
        self._trace.steps.append(Step(_same, (source,), {}, out, site))
        return alias

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        _refuse_chance(func, args, kwargs)
        step = Step(func, self.refs(args), self.refs(kwargs), None)
        used = [x for x in pytree.tree_leaves((step.args, step.kwargs)) if isinstance(x, Ref)]
        if torch.Tag.data_dependent_output in func.tags:
            raise UntraceableError(f"{func} makes the forward depend on numbers in a tensor")
        dynamic = torch.Tag.dynamic_output_shape in func.tags
        if dynamic and (used or not _takes_places(func, args)):
            raise UntraceableError(f"{func} has an output whose shape depends on numbers")
        output = func(*args, **kwargs)
        for leaf in pytree.tree_leaves(output):
            if isinstance(leaf, torch.Tensor):
                self.number(leaf)
            elif isinstance(leaf, bool):
                raise UntraceableError(f"{func} tells the forward something about a tensor")
        step.out = self.refs(output)
        self._trace.steps.append(step)
        return output


def _takes_places(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether an operation takes elements by their places, which tell the output's shape."""
    masks = (torch.bool, torch.uint8)
    return func is torch.ops.aten.index.Tensor and not any(
        isinstance(x, torch.Tensor) and x.dtype in masks for x in pytree.tree_leaves(args[1])
    )


def _refuse_numbers(
    by: _Tracing, name: str, way: Callable[..., Any], tensor: torch.Tensor, *args: Any, **kw: Any
) -> Any:
    if get_ident() != by.thread:
        return way(tensor, *args, **kw)
    raise UntraceableError(f"the forward takes numbers out of a tensor by {name}")


def _refuse_chance(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if torch.Tag.nondeterministic_seeded not in func.tags:
        return
    name = str(func)
    arguments = func._schema.arguments  # noqa: SLF001 - the only way to an argument's name
    given = {a.name: v for a, v in zip(arguments, args, strict=False)} | kwargs
    probability = given.get("p", given.get("dropout_p", given.get("dropout", 0.0)))
    idle = "train" in given and not given["train"]
    attention = "dropout_p" in {a.name for a in arguments}
    if idle or (attention and not probability):
        return
    raise FaultError(
        f"the model draws random numbers in its forward ({name}), so that there is no golden"
        " output to compare with: call model.eval(), and take other randomness out of it"
    )


def _same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor
