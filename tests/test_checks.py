"""What every edge refuses: numbers and tensors that are none."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from likeness.checks import all_finite, as_mask, check_number, first_not_finite
from likeness.errors import LikenessError


@pytest.mark.parametrize("value", [0, 1, -1.0, 0.5, True, np.float32(0.25), np.int64(1)])
def test_numbers_of_the_range_pass_unchanged(value):
    assert check_number(value, "The weight", -1, 1) is value


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, 1.01, -2, 10**400, "0.5", None, [1], 1j, torch.tensor(math.nan)]
)
def test_everything_else_is_refused_in_one_sentence(value):
    with pytest.raises(LikenessError, match=r"^The weight is .*: enter a number from -1 to 1\.$") as caught:
        check_number(value, "The weight", -1, 1)
    assert len(str(caught.value)) < 200


def test_without_a_range_every_finite_number_will_do():
    assert check_number(1e300, "The weight") == 1e300
    with pytest.raises(LikenessError, match="such as 1"):
        check_number(math.inf, "The weight")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@given(place=st.integers(0, 99), bad=st.sampled_from([math.nan, math.inf, -math.inf]))
def test_one_value_that_is_no_number_is_found(dtype, place, bad):
    tensor = torch.linspace(-5, 5, 100, dtype=dtype).reshape(10, 10)
    assert all_finite(tensor) and all_finite(tensor, 5.0) and not all_finite(tensor, 4.9)
    tensor.view(-1)[place] = bad
    assert not all_finite(tensor)
    assert first_not_finite({"a": torch.zeros(1), "b": tensor}) == "b"


def test_whole_numbers_empty_tensors_and_8_bit_floats_are_understood():
    assert all_finite(torch.arange(5)) and all_finite(torch.zeros(0)) and all_finite(torch.tensor(True))
    eight = torch.ones(4).to(torch.float8_e4m3fn)
    assert all_finite(eight) and not all_finite(torch.tensor([math.nan]).to(torch.float8_e4m3fn))


def test_masks_are_clamped_and_brought_to_three_axes():
    mask = as_mask(torch.tensor([[-1.0, 0.5, 7.0]], dtype=torch.float64), "The mask")
    assert mask.dtype == torch.float32
    assert mask.tolist() == [[[0.0, 0.5, 1.0]]]
    assert as_mask(torch.ones(2, 1, 4, 5), "The mask").shape == (2, 4, 5)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (torch.tensor([[0.0, math.nan]]), "NaN or infinity"),
        (torch.tensor([[0.0, math.inf]]), "NaN or infinity"),
        (torch.ones(0, 4, 4), "empty"),
        (torch.ones(1, 4, 0), "empty"),
        (torch.ones(2, 3, 4, 5), "shape"),
        (torch.ones(4), "shape"),
        ("mask", "is a str: connect a MASK"),
    ],
)
def test_masks_that_make_no_sense_are_refused(bad, says):
    with pytest.raises(LikenessError, match=f"^The mask 'region' .*{says}"):
        as_mask(bad, "The mask 'region'")
