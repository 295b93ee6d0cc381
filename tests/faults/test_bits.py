"""Bit operations on stored bits, against Python's integers and struct."""

from __future__ import annotations

import math
import struct
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch

from hypothesis import given, settings
from hypothesis import strategies as st
from nets import quantised

from pystack_nb import faults
from pystack_nb.errors import FaultError
from pystack_nb.faults import bits


# For each type: how struct packs it (None: no such format) and the number of its bits.
TYPES = {
    torch.float16: ("<e", 16),
    torch.float32: ("<f", 32),
    torch.float64: ("<d", 64),
    torch.bfloat16: (None, 16),
    torch.float8_e4m3fn: (None, 8),
    torch.float8_e5m2: (None, 8),
    torch.float8_e4m3fnuz: (None, 8),
    torch.float8_e5m2fnuz: (None, 8),
    torch.float8_e8m0fnu: (None, 8),
    torch.int8: ("<b", 8),
    torch.uint8: ("<B", 8),
    torch.int16: ("<h", 16),
    torch.uint16: ("<H", 16),
    torch.int32: ("<i", 32),
    torch.uint32: ("<I", 32),
    torch.int64: ("<q", 64),
    torch.uint64: ("<Q", 64),
}
every_type = pytest.mark.parametrize("dtype", TYPES, ids=str)
quick = settings(max_examples=60, deadline=None)


def holding(patterns, dtype):
    size = TYPES[dtype][1] // 8
    memory = bytearray(b"".join(p.to_bytes(size, "little") for p in patterns))
    return torch.frombuffer(memory, dtype=torch.uint8).view(dtype)


def patterns_in(tensor):
    memory = bytes(tensor.detach().contiguous().view(torch.uint8).tolist())
    size = tensor.element_size()
    return [int.from_bytes(memory[i : i + size], "little") for i in range(0, len(memory), size)]


@every_type
@given(data=st.data())
@quick
def test_flip_bit_changes_that_bit_of_that_element(dtype, data):
    wide = TYPES[dtype][1]
    held = data.draw(st.lists(st.integers(0, 2**wide - 1), min_size=1, max_size=5))
    place = data.draw(st.integers(0, len(held) - 1))
    bit = data.draw(st.integers(0, wide - 1))
    tensor = holding(held, dtype)

    faults.flip_bit(tensor, place, bit)

    expected = [p ^ (1 << bit) if i == place else p for i, p in enumerate(held)]
    assert patterns_in(tensor) == expected
    faults.flip_bit(tensor, (place,), bit)
    assert patterns_in(tensor) == held


@pytest.mark.filterwarnings("ignore:ComplexHalf")
@pytest.mark.parametrize("dtype", [torch.complex32, torch.complex64, torch.complex128], ids=str)
@given(data=st.data())
@quick
def test_flip_bit_flips_the_real_part_below_and_the_imaginary_one_above(dtype, data):
    wide = dtype.itemsize * 8
    held = data.draw(st.lists(st.integers(0, 2**wide - 1), min_size=6, max_size=6))
    row, column = data.draw(st.tuples(st.integers(0, 1), st.integers(0, 2)))
    bit = data.draw(st.integers(0, wide - 1))
    memory = bytearray(b"".join(p.to_bytes(wide // 8, "little") for p in held))
    flat = torch.frombuffer(memory, dtype=torch.uint8).view(dtype)

    faults.flip_bit(flat.view(3, 2).t(), (row, column), bit)

    expected = [p ^ (1 << bit) if i == 2 * column + row else p for i, p in enumerate(held)]
    assert patterns_in(torch.view_as_real(flat).flatten()) == [
        part for p in expected for part in (p % 2 ** (wide // 2), p >> (wide // 2))
    ]


def test_a_complex_number_has_both_parts_and_no_other_bit():
    x = torch.tensor([1 + 2j])
    faults.flip_bit(x, 0, 31)
    faults.flip_bit(x, 0, 63)
    assert x.tolist() == [-1 - 2j]
    with pytest.raises(FaultError, match="no bit 64"):
        faults.flip_bit(x, 0, 64)
    with pytest.raises(FaultError, match="resolve_conj"):
        faults.flip_bit(x.conj(), 0, 0)


@every_type
@given(data=st.data())
@quick
def test_masks_change_bits_as_pythons_operators_do(dtype, data):
    wide = TYPES[dtype][1]
    word = st.integers(0, 2**wide - 1)
    held = data.draw(st.lists(word, min_size=1, max_size=6))
    rows = data.draw(
        st.lists(st.tuples(st.integers(0, len(held) - 1), word, word, word), max_size=9)
    )
    tensor = holding(held, dtype)
    expected = list(held)
    for place, a, o, x in rows:
        expected[place] = ((expected[place] & a) | o) ^ x

    columns = list(zip(*rows, strict=True)) or [()] * 4
    masks = [np.array(column, np.uint64) for column in columns[1:]]
    bits.change(tensor, np.array(columns[0], np.int64), *masks)

    assert patterns_in(tensor) == expected
    assert bits.read(tensor, np.arange(len(held))).tolist() == expected


@pytest.mark.parametrize("dtype", [d for d, (f, _) in TYPES.items() if f], ids=str)
@given(data=st.data())
@quick
def test_values_and_bits_are_those_of_struct(dtype, data):
    packing, wide = TYPES[dtype]
    pattern = data.draw(st.integers(0, 2**wide - 1))
    (value,) = struct.unpack(packing, pattern.to_bytes(wide // 8, "little"))

    given_value = bits.value_of(pattern, dtype)

    if isinstance(value, float) and math.isnan(value):
        assert math.isnan(given_value)
    else:
        assert given_value == value
        assert bits.bits_of(value, dtype) == pattern


@given(pattern=st.integers(0, 2**16 - 1))
@quick
def test_bfloat16_is_the_upper_half_of_a_float32(pattern):
    (value,) = struct.unpack("<f", (pattern << 16).to_bytes(4, "little"))
    given_value = bits.value_of(pattern, torch.bfloat16)
    assert given_value == value or (math.isnan(given_value) and math.isnan(value))


@every_type
def test_fields_cover_each_bit_once_from_the_sign_down(dtype):
    parts = bits.fields(dtype)
    covered = sorted(bit for part in parts.values() for bit in part)
    assert covered == list(range(bits.width(dtype)))
    if "sign" in parts:
        assert list(parts["sign"]) == [bits.width(dtype) - 1]
    if "mantissa" in parts:
        one = bits.bits_of(1.0, dtype)
        assert sum(1 << bit for bit in parts["mantissa"]) & one == 0
        assert bits.value_of(one | 1, dtype) == 1 + 2.0 ** -len(parts["mantissa"])


@given(data=st.data())
@quick
def test_strides_do_not_matter(data):
    shape = data.draw(st.lists(st.integers(1, 4), min_size=0, max_size=4))
    base = torch.arange(math.prod(shape), dtype=torch.float32).reshape(shape)
    order = data.draw(st.permutations(range(len(shape))))
    tensor = base.permute(order) if shape else base
    place = data.draw(st.integers(0, tensor.numel() - 1))
    flat = tensor.clone().flatten()
    flat[place] = -flat[place]

    bits.flip(tensor, np.array([place]), np.array([1 << 31], np.uint64))

    assert torch.equal(tensor, flat.view(tensor.shape))
    assert base.data_ptr() == tensor.data_ptr()


def test_a_parameter_keeps_its_version_and_its_gradient():
    parameter = torch.nn.Parameter(torch.ones(3))
    loss = (parameter * parameter).sum()
    faults.flip_bit(parameter, 1, 31)
    faults.flip_bit(parameter, 1, 31)
    loss.backward()
    assert parameter.grad.tolist() == [2, 2, 2]


def test_tensors_made_for_inference_can_be_struck_outside_of_it():
    with torch.inference_mode():
        tensor = torch.ones(2)
    faults.flip_bit(tensor, 0, 31)
    assert tensor.tolist() == [-1, 1]


@pytest.mark.parametrize("dtype", [torch.qint8, torch.quint8, torch.qint32], ids=str)
def test_quantised_tensors_are_struck_in_their_integers(dtype):
    tensor = quantised([[-1.0, 0.0], [0.5, 2.0]], dtype)
    before = tensor.int_repr().clone()
    faults.flip_bit(tensor, (1, 0), 3)
    expected = before.clone()
    expected[1, 0] ^= 8
    assert torch.equal(tensor.int_repr(), expected)


def test_of_a_boolean_only_the_lowest_bit_counts():
    tensor = torch.tensor([True, False])
    faults.flip_bit(tensor, 0, 0)
    bits.flip(tensor, np.array([1]), np.array([0xFF], np.uint64))
    assert tensor.tolist() == [False, True]
    assert tensor.view(torch.uint8).tolist() == [0, 1]
    with pytest.raises(FaultError, match="no bit 1"):
        faults.flip_bit(tensor, 0, 1)


@pytest.mark.parametrize(
    ("tensor", "index", "bit", "says"),
    [
        (torch.zeros(3), 3, 0, "from 0 to 2"),
        (torch.zeros(3), -1, 0, "out of range"),
        (torch.zeros(3, 2), 1, 0, "2 dimensions"),
        (torch.zeros(3), (0.5,), 0, "whole number"),
        (torch.zeros(0), 0, 0, "no element"),
        (torch.zeros(3), 0, 32, "from 0 .least significant. to 31"),
        (torch.zeros(3, dtype=torch.float16), 0, 16, "to 15"),
        (torch.zeros(3), 0, -1, "no bit -1"),
        (torch.zeros(3), 0, "sign", "whole number"),
        (torch.zeros(3, dtype=torch.complex64).to_sparse(), 0, 0, "dense tensor"),
        (torch.zeros(3, dtype=torch.uint8).view(torch.float4_e2m1fn_x2), 0, 0, "not described"),
        (torch.zeros(1).expand(3), 0, 0, "contiguous"),
        (torch.zeros(3, device="meta"), 0, 0, "in memory"),
        (torch.eye(3).to_sparse(), (0, 0), 0, "dense"),
        (torch.zeros(5).unfold(0, 3, 1), (0, 1), 31, "contiguous"),
        (torch.tensor([1j]).conj().imag, 0, 0, "resolve_neg"),
        (np.zeros(3), 0, 0, "from_numpy"),
        ([0.0], 0, 0, "no torch.Tensor"),
    ],
)
def test_what_can_not_be_flipped_is_refused(tensor, index, bit, says):
    with pytest.raises(FaultError, match=says):
        faults.flip_bit(tensor, index, bit)


def test_a_nested_tensor_is_struck_in_its_parts():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    with pytest.raises(FaultError, match="unbind"):
        faults.flip_bit(nested, (0, 1), 31)
    faults.flip_bit(nested.unbind()[1], 2, 31)
    assert nested.unbind()[1].tolist() == [1, 1, -1]


@pytest.mark.parametrize(
    ("size", "stride", "shared"),
    [
        ((2, 3), (3, 1), False),
        ((3, 2), (1, 3), False),
        ((1, 3), (0, 1), False),
        ((0, 3), (0, 0), False),
        ((), (), False),
        ((2, 3), (1, 1), True),
        ((2, 3), (0, 1), True),
        ((4, 3), (2, 1), True),
        ((2, 2), (2, 3), False),
        ((3, 3), (2, 3), False),
        ((4, 3), (2, 3), True),
    ],
)
def test_elements_that_share_memory_are_found(size, stride, shared):
    tensor = torch.zeros(40).as_strided(size, stride)
    assert bits.overlaps(tensor) == shared


@pytest.mark.parametrize("position", [-1, 4])
def test_flat_positions_out_of_range_are_refused(position):
    with pytest.raises(FaultError, match="from 0 to 3"):
        bits.flip(torch.zeros(2, 2), np.array([position]), np.array([1], np.uint64))


@pytest.mark.parametrize(
    ("value", "dtype"), [(300, torch.uint8), (-1, torch.uint8), (math.nan, torch.int32)]
)
def test_a_value_that_an_integer_type_can_not_hold_is_refused(value, dtype):
    with pytest.raises(FaultError, match="can hold"):
        bits.bits_of(value, dtype)


def test_without_torch_the_error_names_the_command():
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from pystack_nb import faults, errors\n"
        "faults.sample_size\n"
        "try: faults.flip_bit\n"
        "except errors.TorchMissingError as error: print(error)\n"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "pip install pystack-nb[torch]" in done.stdout


def test_functions_keep_their_names_when_their_modules_are_imported():
    import pystack_nb.faults.sites  # noqa: F401

    assert callable(faults.sites)


def test_the_package_is_there_without_an_import_of_its_own_and_so_is_each_name():
    program = (
        "import sys, pystack_nb\n"
        "assert 'torch' not in sys.modules and 'faults' in pystack_nb.__all__\n"
        "print(pystack_nb.faults.__name__)\n"
        "assert 'torch' not in sys.modules\n"
    )
    printed = subprocess.check_output([sys.executable, "-c", program], text=True)
    assert printed.strip() == faults.__name__
    assert all(getattr(faults, name).__name__ == name for name in faults.__all__)
    public = {"Metric", "Pattern", "Defence", "Protection", "Plan", "Estimate", "Reweighted"}
    assert public | {"upper_bound"} <= {*faults.__all__}
