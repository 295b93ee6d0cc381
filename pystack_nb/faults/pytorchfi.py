"""Fault injection by PyTorchFI's names.

Scripts written for PyTorchFI (https://github.com/pytorchfi/pytorchfi), for its release 0.6.0
or for its later source, run with this class in the place of its ``core.fault_injection`` or
``core.FaultInjection``, and with `pystack_nb.neuron_error_models` and
`pystack_nb.weight_error_models` in the place of its modules of these names::

    from pystack_nb.faults import FaultInjection
    from pystack_nb.neuron_error_models import random_neuron_inj

    pfi = FaultInjection(model, batch_size=4, input_shape=[3, 32, 32])
    corrupted = random_neuron_inj(pfi, min_val=-10, max_val=10)
    corrupted(images), model(images)

For bits that really flip, for weights and neurons struck at once and for rates with an
interval, see `faults.inject` and `faults.Campaign`.
"""

from __future__ import annotations

import warnings

from typing import TYPE_CHECKING, Any

import torch

from torch import nn

from pystack_nb.errors import FaultLocationError
from pystack_nb.faults import pytorchfi_layers as numbering
from pystack_nb.faults.pytorchfi_corrupted import CorruptedModel, CorruptedNeurons, CorruptedWeights
from pystack_nb.faults.pytorchfi_places import (
    check_lists,
    check_names,
    check_values,
    dimension,
    layer_classes,
    one_of,
    weight_index,
)
from pystack_nb.faults.pytorchfi_reports import Reports


if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_NEURON = ("batch", "layer_num", "dim1", "dim2", "dim3", "value", "function")
_WEIGHT = ("layer_num", "k", "dim1", "dim2", "dim3", "value", "function")


class FaultInjection(Reports):
    """Declares faults in the neurons or in the weights of a model.

    A layer's number is its place in the order in which the layers run, for neurons and
    weights alike; `layer_names` has the names.  PyTorchFI numbers weights in the order in
    which modules are defined: where that is another order, so are the numbers here.  A
    module that runs twice has two numbers, and one weight.  Modules that never run, but
    whose weights are used by others, come last and have weights only.

    Differently from PyTorchFI, nothing is copied: what a declaration returns shares
    everything with the original, works for any number of forwards, and leaves the original
    as it is.  Like there, a new declaration or a reset ends the neuron faults that were
    declared before.

    Parameters
    ----------
    model : torch.nn.Module
        In train or eval mode.  It is run once, on one random sample, to find its layers;
        this touches its state no more than that, and of random generators only torch's, from
        which PyTorchFI draws the sample, too.
    batch_size : int
        Neuron faults can be in samples 0 to ``batch_size - 1``.
    input_shape : list of int, optional
        Of one sample; ``[3, 224, 224]`` if none is given.
    layer_types : list, optional
        Classes of modules, or ``["all"]`` for every innermost module; ``[nn.Conv2d]`` if
        none is given.
    use_cuda : bool, optional
        Where the random sample is made; if it isn't said, where the model's first parameter is.
    inputs : tensor or tuple, optional
        An example to run the model on instead of a random sample, with one sample in it:
        for models that take several inputs, or whole numbers.

    Raises
    ------
    FaultLocationError
        If the batch size, the input's shape or a layer type makes no sense.
    FaultError
        If the model can't run on the example or has no layer of these types.
    """

    def __init__(
        self,
        model: nn.Module,
        batch_size: int,
        input_shape: list[int] | None = None,
        layer_types: Sequence[Any] | None = None,
        *,
        use_cuda: bool | None = None,
        inputs: Any = None,
    ) -> None:
        shape: Any = [3, 224, 224] if input_shape is None else input_shape
        if not isinstance(shape, list):
            raise FaultLocationError("Input shape must be provided as a list: [3, 32, 32]")
        if not (isinstance(batch_size, int) and batch_size >= 1):  # type: ignore[redundant-expr]
            raise FaultLocationError("Batch size must be an integer: give 1 or more")
        self.original_model = model
        self.corrupted_model: CorruptedModel | None = None
        self.batch_size = batch_size
        self._input_shape = shape
        self._inj_layer_types = layer_classes(layer_types or [nn.Conv2d])
        first = next(model.parameters(), None)
        self.use_cuda = (first is not None and first.is_cuda) if use_cuda is None else use_cuda

        example = _random_sample(shape, first, self.use_cuda) if inputs is None else inputs
        example = example if isinstance(example, tuple) else (example,)
        self.layers = numbering.find(model, self._inj_layer_types, example)
        self.layer_names = [layer.name for layer in self.layers]
        self.output_size = [list(x.shape) for x in self.layers if x.shape is not None]
        self.layers_type = [type(x.module) for x in self.layers if x.shape is not None]
        self.layers_dim = [len(shape) for shape in self.output_size]
        self.weights_size = [_weight_shape(layer.module) for layer in self.layers]

        self.handles: list[Any] = []
        self._forget()

    def declare_neuron_fault_injection(self, **kwargs: Any) -> CorruptedModel:
        """Declare which outputs of layers are to be wrong.

        Parameters
        ----------
        batch, layer_num, dim1, dim2, dim3 : sequence of int
            The sites, one in each row of these lists: sample, number of the layer, and
            indices in its output.  Dimensions that an output hasn't got are None; for one
            of more than four, ``dim3`` is a tuple with all further indices.
        value : sequence of float
            What to write there.
        function : callable, optional
            Instead of values: takes module, input and output of every layer when it runs,
            and changes the output in place or returns another one.  ``current_layer``
            is then the layer's number.

        Returns
        -------
        CorruptedModel
            Runs like the original, under these faults, until the next declaration.

        Raises
        ------
        FaultLocationError
            If lists are missing or too short, or a site isn't there.
        FaultError
            When the model runs, if a layer doesn't run or its output is too small.
        """
        check_names("declare_neuron_fault_injection", kwargs, _NEURON)
        self._forget()
        function: Callable[..., Any] | None = kwargs.get("function")
        if function is None:
            self.corrupt_value = kwargs.get("value", [])
        self.corrupt_layer = kwargs.get("layer_num", [])
        self.corrupt_batch = kwargs.get("batch", [])
        self.corrupt_dim = [kwargs.get(name, []) for name in ("dim1", "dim2", "dim3")]
        self.check_bounds(self.corrupt_batch, self.corrupt_layer, self.corrupt_dim)
        if function is None:
            check_values(self.corrupt_value, self.corrupt_layer)
        self.corrupted_model = CorruptedNeurons(self, function)
        return self.corrupted_model

    def declare_weight_fault_injection(self, **kwargs: Any) -> CorruptedModel:
        """Declare which weights are to be wrong.

        Parameters
        ----------
        layer_num, k, dim1, dim2, dim3 : sequence of int
            The sites, one in each row of these lists: number of the layer, and the index
            in its parameter ``weight``.  Dimensions that it hasn't got are None; for one of
            more than four, ``dim3`` is a tuple with all further indices.
        value : sequence of float
            What to write there.
        function : callable, optional
            Instead of values: takes the weight and the index, and returns what to write.
            It is called now, once for each site, in the order of the layers.

        Returns
        -------
        CorruptedModel
            Runs like the original, with these weights, for as long as it is kept.

        Raises
        ------
        FaultLocationError
            If lists are missing or too short, or a site isn't there.
        FaultError
            If a layer has no stored weight.
        """
        check_names("declare_weight_fault_injection", kwargs, _WEIGHT)
        self._forget()
        function: Callable[..., Any] | None = kwargs.get("function")
        numbers = kwargs.get("layer_num", [])
        index = [kwargs.get(name, []) for name in ("k", "dim1", "dim2", "dim3")]
        check_lists(numbers, *index)
        values = kwargs.get("value", [])
        if function is None:
            check_values(values, numbers)

        wrong: dict[nn.Parameter, torch.Tensor] = {}
        for row in sorted(range(len(numbers)), key=lambda i: numbers[i]):
            weight = self._weight(numbers[row])
            tensor = wrong.setdefault(weight, weight.detach().clone())
            where = weight_index(tuple(x[row] for x in index), tuple(weight.shape))
            tensor[where] = values[row] if function is None else function(tensor, where)
        self.corrupted_model = CorruptedWeights(self.original_model, wrong)
        return self.corrupted_model

    def reset_fault_injection(self) -> None:
        """Forget what was declared; the model that declared neuron faults gave is right again."""
        self._forget()
        self.corrupted_model = None

    def check_bounds(self, batch: Sequence[int], layer: Sequence[int], *dim: Any) -> None:
        """Check that declared sites are there.

        Parameters
        ----------
        batch, layer, dim : sequence of int
            As declared; the dimensions as three lists, or as one of three.

        Raises
        ------
        FaultLocationError
            If one isn't.
        """
        check_lists(batch, layer, *(dim[0] if len(dim) == 1 else dim))
        for row in range(len(batch)):
            self.assert_injection_bounds(row)

    def assert_injection_bounds(self, index: int) -> None:
        """Check that the declared site in this row is there.

        Raises
        ------
        FaultLocationError
            If it isn't.

        Warns
        -----
        UserWarning
            If indices are given for dimensions that the layer's output hasn't got.
        """
        if not 0 <= index < len(self.corrupt_batch):
            raise FaultLocationError(
                f"Invalid injection index: {index}; {len(self.corrupt_batch)} are declared"
            )
        one_of(self.corrupt_batch[index], self.batch_size, "Invalid batch element!")
        number = one_of(self.corrupt_layer[index], len(self.output_size), "Invalid layer!")
        shape = tuple(self.output_size[number])
        self.index_of(index, (self.batch_size, *shape[1:]))
        unused = [
            d for d in (2, 3) if len(shape) <= d and self.corrupt_dim[d - 1][index] is not None
        ]
        if unused:
            warnings.warn(
                f"Values in Dim{' and Dim'.join(map(str, unused))} ignored, since layer is"
                f" {self.layers_type[number]}",
                stacklevel=2,
            )

    def index_of(self, row: int, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Give the index of a declared neuron in an output of this shape.

        Raises
        ------
        FaultLocationError
            If the output has no such element: this forward has fewer samples, say.
        """
        given: list[Any] = [self.corrupt_dim[0][row], self.corrupt_dim[1][row]]
        last = self.corrupt_dim[2][row]
        given += last if isinstance(last, tuple | list) else [last]
        batch = one_of(
            self.corrupt_batch[row],
            shape[0],
            "Invalid batch element! This forward has fewer samples than batch_size says, or the"
            " fault is declared beyond it: give full batches (DataLoader(drop_last=True))",
        )
        if len(given) < len(shape) - 1:
            given += [None] * (len(shape) - 1 - len(given))
        return batch, *(dimension(given[d - 1], shape, d) for d in range(1, len(shape)))

    def update_layer(self, value: int = 1) -> None:
        """Go on to the next layer; functions of scripts call it, and nothing depends on it."""
        self.current_layer += value

    def reset_current_layer(self) -> None:
        """Go back to the first layer; nothing depends on it."""
        self.current_layer = 0

    def _forget(self) -> None:
        if isinstance(self.corrupted_model, CorruptedNeurons):
            self.corrupted_model.__dict__["live"] = False
        self.current_layer = 0
        self.corrupt_batch = []
        self.corrupt_layer = []
        self.corrupt_dim = [[], [], []]
        self.corrupt_value = []

    def _weight(self, number: int) -> nn.Parameter:
        layer = self.layers[one_of(number, len(self.layers), "Invalid layer!")]
        if layer.weight is None:
            raise FaultLocationError(
                f"layer {number} ({layer.name}) stores no parameter called weight: give the"
                " role of the one that you mean to faults.inject"
            )
        return layer.weight

    # The names of release 0.6.0.
    fi_reset = reset_fault_injection
    declare_neuron_fi = declare_neuron_fault_injection
    declare_weight_fi = declare_weight_fault_injection
    assert_inj_bounds = assert_injection_bounds
    updateLayer = update_layer  # noqa: N815


fault_injection = FaultInjection


def _random_sample(shape: list[int], first: torch.Tensor | None, use_cuda: bool) -> torch.Tensor:
    # From the global generator, as PyTorchFI does: what a script draws next is then the same.
    dtype = None if first is None else first.dtype
    sample = torch.randn((1, *shape), dtype=dtype, device="cuda" if use_cuda else None)
    return sample if first is None or use_cuda else sample.to(first.device)


def _weight_shape(module: nn.Module) -> torch.Size | None:
    weight = getattr(module, "weight", None)
    weight = weight() if callable(weight) and not isinstance(weight, torch.Tensor) else weight
    return weight.shape if isinstance(weight, torch.Tensor) else None
