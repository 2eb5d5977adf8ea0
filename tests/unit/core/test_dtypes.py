"""The table of data types agrees with the libraries whose names it holds."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import torch
from onerec_trt.core.dtypes import DTYPES, FROM_SAFETENSORS, DataType, of_torch
from safetensors.torch import save

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_every_library_knows_its_name(dtype: DataType) -> None:
    triton = pytest.importorskip("triton.language")
    assert of_torch(dtype.torch) is dtype
    assert dtype.torch.itemsize == dtype.bytes
    number = onnx.TensorProto.DataType.Value(dtype.onnx)
    assert onnx.helper.tensor_dtype_to_np_dtype(number).name == dtype.name
    assert triton.str_to_ty(dtype.pointer, None).element_ty.primitive_bitwidth == 8 * dtype.bytes
    stored = save({"x": torch.zeros(1, dtype=dtype.torch)})
    (size,) = struct.unpack_from("<Q", stored)
    assert FROM_SAFETENSORS[re.search(rb'"dtype":"(\w+)"', stored[8 : 8 + size])[1].decode()] is dtype  # type: ignore[index]


def test_numbers_are_those_of_the_plugin_host() -> None:
    source = (ROOT / "builders" / "plugin_host" / "program.h").read_text()
    (body,) = re.findall(r"enum class DType : uint8_t\s*\{(.*?)\};", source, re.S)
    names = [name.lower() for name in re.findall(r"k(\w+)", body)]
    known = sorted((each for each in DTYPES.values() if each.host is not None), key=lambda each: each.host or 0)
    assert names == [each.name.replace("float8_e4m3fn", "float8e4m3") for each in known]


def test_the_table_needs_no_library() -> None:
    code = "import sys; import onerec_trt.core.dtypes; print(sorted({'torch', 'onnx', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
