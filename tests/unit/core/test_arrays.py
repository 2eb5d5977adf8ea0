from __future__ import annotations

import numpy as np
import pytest
from onerec_trt.core.arrays import dtype_name
from onerec_trt.core.dtypes import DTYPES


@pytest.mark.parametrize("name", ["float16", "float32", "int32", "int64", "uint8", "bool", "object"])
def test_a_type_has_numpys_name(name: str) -> None:
    assert dtype_name(np.zeros(1, name).dtype) == np.dtype(name).name


def test_another_byte_order_is_another_type() -> None:
    swapped = np.dtype("float16").newbyteorder()
    assert dtype_name(swapped) == swapped.str
    assert dtype_name(swapped) not in DTYPES
    assert dtype_name(swapped.newbyteorder()) == "float16"
