"""Error models: what is drawn, and what it does."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hypothesis import given, settings
from hypothesis import strategies as st
from nets import quantised

from pystack_nb.errors import FaultError
from pystack_nb.faults import (
    BitFlip,
    Custom,
    Noise,
    RandomValue,
    Replace,
    Sequence,
    StuckAt,
    Zero,
    bits,
)


FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
WHOLE = [torch.int8, torch.uint8]
quick = settings(max_examples=40, deadline=None)


def struck(model, tensor, seed=0):
    """Apply a model once to every element; give the stored bits before and after."""
    tensor = tensor.clone()
    positions = np.arange(tensor.numel())
    before = bits.read(tensor, positions)
    drawn = model.draw(np.random.default_rng(seed), tensor.dtype, tensor.numel())
    model.apply(tensor, positions, drawn)
    return before, bits.read(tensor, positions), tensor, drawn


def ones(masks):
    return [[i for i in range(64) if int(mask) >> i & 1] for mask in masks]


@pytest.mark.parametrize("dtype", [*FLOATS, *WHOLE], ids=str)
def test_a_random_flip_strikes_one_bit_each_as_often_as_another(dtype):
    wide, count = bits.width(dtype), 6400
    before, after, _, drawn = struck(BitFlip(), torch.ones(count).to(dtype))

    (struck_bits,) = zip(*ones(before ^ after), strict=True)
    assert drawn.bit.tolist() == list(struck_bits)
    found = np.bincount(drawn.bit, minlength=wide)
    expected = count / wide
    assert (abs(found - expected) < 6 * math.sqrt(expected)).all()


@given(wanted=st.integers(1, 16), seed=st.integers(0, 99))
@quick
def test_several_bits_are_distinct(wanted, seed):
    before, after, *_ = struck(BitFlip(bits=wanted), torch.ones(20).half(), seed)
    assert {len(found) for found in ones(before ^ after)} == {wanted}


@given(wanted=st.integers(1, 32), seed=st.integers(0, 99))
@quick
def test_a_burst_is_of_neighbours(wanted, seed):
    before, after, *_ = struck(BitFlip(bits=wanted, burst=True), torch.ones(20), seed)
    for found in ones(before ^ after):
        assert found == list(range(found[0], found[0] + wanted))


@pytest.mark.parametrize("field", ["sign", "exponent", "mantissa"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_a_field_bounds_the_choice(dtype, field):
    before, after, *_ = struck(BitFlip(field=field), torch.ones(2000).to(dtype))
    assert {b for (b,) in ones(before ^ after)} == {*bits.fields(dtype)[field]}


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (BitFlip(bit=30), [30]),
        (BitFlip(bit=(0, 31, 5)), [0, 5, 31]),
        (BitFlip(bits=3, bit=4, burst=True), [4, 5, 6]),
    ],
)
def test_chosen_bits_are_the_ones_struck(model, expected):
    before, after, _, drawn = struck(model, torch.ones(3))
    assert ones(before ^ after) == [expected] * 3
    assert drawn.bit.tolist() == [expected[0]] * 3


@pytest.mark.parametrize("value", [0, 1])
def test_a_stuck_bit_reads_its_value_whatever_was_there(value):
    tensor = torch.tensor([0, 255, 0b1010], dtype=torch.uint8)
    _, after, *_ = struck(StuckAt(value, bit=(1, 3)), tensor)
    assert after.tolist() == ([0, 255 - 0b1010, 0] if value == 0 else [0b1010, 255, 0b1010])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("value", [1.5, -0.0, math.inf, math.nan, 1e300])
def test_a_value_replaces_another_and_the_masks_say_so(dtype, value):
    _, after, tensor, drawn = struck(Replace(value), torch.randn(4).to(dtype))
    expected = torch.full((4,), value, dtype=torch.float64).to(dtype)
    assert torch.equal(tensor.nan_to_num(7.0), expected.nan_to_num(7.0))
    assert (drawn.and_mask == 0).all()
    assert (drawn.xor_mask == after).all()
    np.testing.assert_array_equal(drawn.value, [value] * 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
@pytest.mark.parametrize(
    "made", [lambda values, _: values.double() + 2.0**63, lambda *_: [2.0**63] * 3]
)
def test_a_value_is_written_whatever_the_default_device_is(dtype, made):
    tensor = torch.zeros(3, dtype=dtype)
    most = 2**63 if dtype.is_floating_point else torch.iinfo(dtype).max
    # Of all devices the one where nobody can look at a number.
    with torch.device("meta"):
        assert struck(Custom(made), tensor)[2].tolist() == [most] * 3
        assert struck(Replace(7), tensor)[2].tolist() == [7] * 3


def test_zero_is_all_bits_zero():
    _, after, *_ = struck(Zero(), torch.tensor([-1.0, math.nan]))
    assert after.tolist() == [0, 0]


def test_random_values_fill_their_range():
    _, _, floats, _ = struck(RandomValue(-2, 3), torch.ones(2000))
    assert floats.min() >= -2
    assert floats.max() <= 3
    assert floats.std() > 1
    _, _, whole, _ = struck(RandomValue(-1.5, 2), torch.ones(200, dtype=torch.int8))
    assert whole.unique().tolist() == [-1, 0, 1, 2]


@pytest.mark.parametrize("relative", [False, True])
def test_noise_deviates_as_told(relative):
    tensor = torch.full((4000,), 10.0)
    _, _, noisy, _ = struck(Noise(0.5, relative=relative), tensor)
    expected = 5 if relative else 0.5
    assert abs(float((noisy - tensor).std()) - expected) < 0.1 * expected
    assert abs(float((noisy - tensor).mean())) < 0.1 * expected


def test_noise_on_integers_is_rounded_and_saturates():
    _, _, noisy, _ = struck(Noise(50), torch.full((500,), 120, dtype=torch.int8))
    assert int(noisy.max()) == 127
    assert len(noisy.unique()) > 20


def test_a_custom_function_gets_the_values_and_a_generator():
    def twice(values, rng):
        assert isinstance(rng, np.random.Generator)
        return values * 2 + torch.from_numpy(rng.integers(10, size=len(values)))

    model = Custom(twice)
    first = struck(model, torch.arange(5.0), seed=1)[2]
    again = struck(model, torch.arange(5.0), seed=1)[2]
    assert torch.equal(first, again)
    assert ((first - 2 * torch.arange(5.0)) % 1 == 0).all()
    assert struck(Custom(lambda _, rng: rng.integers(3, 4)), torch.arange(2.0))[2].tolist() == [
        3,
        3,
    ]
    with pytest.raises(FaultError, match="as many as it is given"):
        struck(Custom(lambda values, _: values[:2]), torch.arange(5.0))


def test_a_custom_function_does_the_same_each_time_that_a_fault_is_applied():
    model = Custom(lambda values, rng: rng.random(len(values)))
    drawn = model.draw(np.random.default_rng(0), torch.float32, 3)
    tensors = torch.zeros(2, 3)
    for tensor in tensors:
        model.apply(tensor, np.arange(3), drawn)
    assert torch.equal(tensors[0], tensors[1])


@given(
    kinds=st.lists(st.sampled_from("01fzr"), min_size=1, max_size=5),
    held=st.lists(st.integers(0, 255), min_size=1, max_size=8),
    seed=st.integers(0, 99),
)
@quick
def test_a_sequence_does_one_thing_after_the_other(kinds, held, seed):
    make = {
        "0": StuckAt(0, bits=3),
        "1": StuckAt(1, bits=3),
        "f": BitFlip(bits=2),
        "z": Zero(),
        "r": Replace(77),
    }
    models = [make[kind] for kind in kinds]
    together = torch.tensor(held, dtype=torch.uint8)
    singly = together.clone()
    positions = np.arange(len(held))

    sequence = Sequence(*models)
    drawn = sequence.draw(np.random.default_rng(seed), torch.uint8, len(held))
    sequence.apply(together, positions, drawn)
    rng = np.random.default_rng(seed)
    for model in models:
        model.apply(singly, positions, model.draw(rng, torch.uint8, len(held)))

    assert torch.equal(together, singly)
    assert not drawn.parts
    assert ((drawn.bit == -1) == any(kind in "zr" for kind in kinds)).all()


def test_a_sum_is_a_sequence_whose_parts_may_need_the_value():
    model = Noise(0) + BitFlip(bit=31) + Replace(5)
    assert [type(m) for m in model.models] == [Noise, BitFlip, Replace]
    assert not model.reduces(torch.float32)
    assert struck(model, torch.ones(2))[2].tolist() == [5, 5]
    assert struck(Noise(0) + BitFlip(bit=31), torch.ones(2))[2].tolist() == [-1, -1]


@pytest.mark.parametrize("dtype", [torch.qint8, torch.quint8], ids=str)
def test_quantised_tensors_get_codes_for_values_and_flips_in_their_bits(dtype):
    tensor = quantised([1.0, 0.5, 0.0], dtype, scale=0.25, zero_point=4)
    assert struck(Replace(-0.5), tensor)[1].tolist() == [2, 2, 2]
    assert struck(Zero(), tensor)[1].tolist() == [4, 4, 4]
    top = 127 if dtype == torch.qint8 else 255
    assert struck(Replace(1e9), tensor)[1].tolist() == [top] * 3
    assert struck(Custom(lambda values, _: values + 0.25), tensor)[1].tolist() == [9, 7, 5]
    assert struck(BitFlip(bit=0), tensor)[1].tolist() == [9, 7, 5]
    assert struck(BitFlip(bit=0) + Zero(), tensor)[1].tolist() == [4, 4, 4]


def test_each_channel_of_a_quantised_tensor_has_its_scale():
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tensor = torch.quantize_per_channel(
            torch.ones(2, 2), torch.tensor([0.5, 0.25]), torch.tensor([0, 1]), 0, torch.qint8
        )
    assert struck(Replace(2), tensor)[2].int_repr().tolist() == [[4, 4], [9, 9]]


@pytest.mark.parametrize(
    ("model", "dtype", "expected"),
    [
        (BitFlip(), torch.float32, 32),
        (BitFlip(bits=2), torch.float16, 120),
        (BitFlip(bits=2, burst=True), torch.float16, 15),
        (BitFlip(field="exponent"), torch.bfloat16, 8),
        (StuckAt(1, bit=3), torch.int8, 1),
        (Zero(), torch.float64, 1),
        (Noise(1), torch.float64, math.inf),
        (BitFlip() + StuckAt(0), torch.int8, 64),
    ],
)
def test_models_know_how_many_faults_an_element_can_have(model, dtype, expected):
    assert model.faults_per_element(dtype) == expected


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: BitFlip(bits=0), "1 or more"),
        (lambda: BitFlip(bit=-1), "from 0 on"),
        (lambda: BitFlip(bit=(1, 1)), "distinct"),
        (lambda: BitFlip(bit=()), "one bit"),
        (lambda: BitFlip(bit="sign"), "whole numbers"),
        (lambda: BitFlip(field="fraction"), "one of"),
        (lambda: BitFlip(bit=3, field="sign"), "one of them"),
        (lambda: BitFlip(bits=2, bit=(1, 2, 3)), "disagree"),
        (lambda: StuckAt(2), "0 or 1"),
        (lambda: RandomValue(2, 1), "smaller one first"),
        (lambda: RandomValue(0, math.inf), "two numbers"),
        (lambda: Noise(-1), "from 0 on"),
        (lambda: RandomValue("a", 1), "low='a' is no number"),
        (lambda: RandomValue(0, None), "high=None is no number"),
        (lambda: Noise("a"), "std='a' is no number"),
        (lambda: Replace("a"), "value='a' is no number"),
        (lambda: Replace("3"), "such as"),
        (lambda: Custom(3), "give one of"),
        (Sequence, "one or more"),
    ],
)
def test_a_model_that_can_not_be_is_refused_when_it_is_made(make, says):
    with pytest.raises(FaultError, match=says):
        make()


@pytest.mark.parametrize(
    ("model", "dtype", "says"),
    [
        (BitFlip(bit=16), torch.float16, "no bit 16"),
        (BitFlip(bits=9), torch.int8, "8 bits and not 9"),
        (BitFlip(bits=2, field="sign"), torch.float32, "1 bits and not 2"),
        (BitFlip(field="exponent"), torch.int8, "'sign', 'magnitude'"),
        (BitFlip(bits=4, bit=30, burst=True), torch.float32, "no bit 32"),
        (Replace(300), torch.uint8, "can hold"),
        (Replace(math.nan), torch.qint8, "choose a number"),
        (RandomValue(0.1, 0.9), torch.int8, "wider range"),
        (BitFlip(), torch.complex64, "view_as_real"),
    ],
)
def test_a_model_that_a_type_can_not_have_is_refused_when_it_is_drawn(model, dtype, says):
    with pytest.raises(FaultError, match=says):
        model.draw(np.random.default_rng(0), dtype, 1)
