"""What an injection in PyTorchFI's manner can be asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pystack_nb.errors import FaultLocationError
from pystack_nb.faults.pytorchfi_places import one_of


if TYPE_CHECKING:
    import torch

    from torch import nn

    from pystack_nb.faults.pytorchfi_corrupted import CorruptedModel

_RULE = 82


class Reports:
    """The accessors of both of PyTorchFI's dialects."""

    original_model: nn.Module
    corrupted_model: CorruptedModel | None
    batch_size: int
    use_cuda: bool
    output_size: list[list[int]]
    layers_type: list[type[nn.Module]]
    layers_dim: list[int]
    weights_size: list[torch.Size | None]
    current_layer: int
    corrupt_batch: Any
    corrupt_layer: Any
    corrupt_value: Any
    corrupt_dim: list[Any]
    _input_shape: list[int]
    _inj_layer_types: list[Any]

    def get_total_layers(self) -> int:
        """Give the number of layers that run."""
        return len(self.output_size)

    def get_layer_type(self, layer_num: int) -> type[nn.Module]:
        """Give the class of a layer's module."""
        return self.layers_type[self._running(layer_num)]

    def get_layer_dim(self, layer_num: int) -> int:
        """Give the number of dimensions of a layer's output, with that of the batch."""
        return self.layers_dim[self._running(layer_num)]

    def get_layer_shape(self, layer_num: int) -> list[int]:
        """Give the shape of a layer's output for one sample, with that of the batch (1)."""
        return self.output_size[self._running(layer_num)]

    def get_tensor_dim(self, layer: int, dim: int) -> int:
        """Give the size of a layer's output in one dimension."""
        shape = self.get_layer_shape(layer)
        return shape[one_of(dim, len(shape), f"Dimension is out of bounds for layer {layer}")]

    def get_weights_size(self, layer_num: int) -> torch.Size:
        """Give the shape of a layer's weight.

        Raises
        ------
        FaultLocationError
            If there is no such layer, or it has no weight.
        """
        size = self.weights_size[one_of(layer_num, len(self.weights_size), "Invalid layer!")]
        if size is None:
            raise FaultLocationError(
                f"layer {layer_num} has no weight: choose one whose weights_size is not None"
            )
        return size

    def get_weights_dim(self, layer_num: int) -> int:
        """Give the number of dimensions of a layer's weight."""
        return len(self.get_weights_size(layer_num))

    def get_original_model(self) -> nn.Module:
        """Give the model that faults are declared for."""
        return self.original_model

    def get_corrupted_model(self) -> CorruptedModel | None:
        """Give what the last declaration returned."""
        return self.corrupted_model

    def get_output_size(self) -> list[list[int]]:
        """Give the shapes of all layers' outputs for one sample."""
        return self.output_size

    def get_inj_layer_types(self) -> list[Any]:
        """Give the classes of modules that are layers."""
        return self._inj_layer_types

    def get_total_batches(self) -> int:
        """Give the number of samples in a batch."""
        return self.batch_size

    def get_current_layer(self) -> int:
        """Give the number of the layer that runs."""
        return self.current_layer

    def get_corrupt_layer(self) -> Any:
        """Give the numbers of the layers with faults."""
        return self.corrupt_layer

    def set_corrupt_layer(self, value: Any) -> None:
        """Set the numbers of the layers with faults."""
        self.corrupt_layer = value

    def get_fmaps_num(self, layer: int) -> int:
        """Give the number of feature maps in a layer's output."""
        return self.get_tensor_dim(layer, 1)

    def get_fmaps_H(self, layer: int) -> int:  # noqa: N802
        """Give the height of the feature maps in a layer's output."""
        return self.get_tensor_dim(layer, 2)

    def get_fmaps_W(self, layer: int) -> int:  # noqa: N802
        """Give the width of the feature maps in a layer's output."""
        return self.get_tensor_dim(layer, 3)

    def get_fmap_HW(self, layer: int) -> tuple[int, int]:  # noqa: N802
        """Give height and width of the feature maps in a layer's output."""
        return self.get_fmaps_H(layer), self.get_fmaps_W(layer)

    @property
    def corrupt_dim1(self) -> Any:
        """The declared channels."""
        return self.corrupt_dim[0]

    @corrupt_dim1.setter
    def corrupt_dim1(self, value: Any) -> None:
        self.corrupt_dim[0] = value

    @property
    def corrupt_dim2(self) -> Any:
        """The declared rows of feature maps."""
        return self.corrupt_dim[1]

    @corrupt_dim2.setter
    def corrupt_dim2(self, value: Any) -> None:
        self.corrupt_dim[1] = value

    @property
    def corrupt_dim3(self) -> Any:
        """The declared columns of feature maps."""
        return self.corrupt_dim[2]

    @corrupt_dim3.setter
    def corrupt_dim3(self, value: Any) -> None:
        self.corrupt_dim[2] = value

    def print_pytorchfi_layer_summary(self) -> str:
        """Print the layers with their numbers, types and shapes, and give the text."""
        rule = "-" * _RULE
        shape = "".join(f"{size} " for size in self._input_shape)
        row = "{:>5}  {:>15}  {:>10} {:>20} {:>20}".format
        lines = [
            " PYTORCHFI INIT SUMMARY ".center(_RULE, "="),
            "",
            "Layer types allowing injections:",
            rule,
            *(f"   - {_named(kind)}" for kind in self._inj_layer_types),
            "",
            "Model Info:",
            rule,
            f"   - Shape of input into the model: ({shape})",
            f"   - Batch Size: {self.batch_size}",
            f"   - CUDA Enabled: {self.use_cuda}",
            "",
            "Layer Info:",
            rule,
            row("Layer #", "Layer type", "Dimensions", "Weight Shape", "Output Shape"),
            rule,
        ]
        for number, output in enumerate(self.output_size):
            kind, weight = self.layers_type[number].__name__, self.weights_size[number]
            weights = "-" if weight is None else str(list(weight))
            lines.append(row(number, kind, self.layers_dim[number], weights, str(output)))
        text = "\n".join([*lines, "=" * _RULE, ""])
        print(text)  # noqa: T201 - what its name promises
        return text

    def _running(self, number: int) -> int:
        return one_of(number, len(self.output_size), "Invalid layer!")


def _named(kind: Any) -> str:
    return kind if isinstance(kind, str) else str(kind.__name__)
