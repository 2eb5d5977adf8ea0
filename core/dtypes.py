"""The data types of tensors and what each is called elsewhere: the one table that all modules read.

It imports nothing, so that the runtime can read it without PyTorch or ONNX.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

DType = Literal["float32", "float16", "bfloat16", "float8_e4m3fn", "int64", "int32"]


@dataclass(frozen=True)
class DataType:
    """A data type.

    Attributes:
        name: As PyTorch, NumPy and ml_dtypes call it.
        bytes: Of one element.
        onnx: Name in `onnx.TensorProto`.
        tensorrt: Name in TensorRT's `DataType`.
        safetensors: Name in the header of a safetensors file.
        triton: Name in the signature of a Triton kernel.
        host: Number in a launch program (`DType` in builders/plugin_host/program.h); None: no kernel takes it.
    """

    name: DType
    bytes: int
    onnx: str
    tensorrt: str
    safetensors: str
    triton: str
    host: int | None = None

    @property
    def pointer(self) -> str:
        """Triton's type of a pointer to it."""
        return f"*{self.triton}"

    @property
    def torch(self) -> torch.dtype:
        """PyTorch's type."""
        import torch

        found: torch.dtype = getattr(torch, self.name)
        return found


_TABLE = (
    DataType("float32", 4, "FLOAT", "FLOAT", "F32", "fp32", host=0),
    DataType("float16", 2, "FLOAT16", "HALF", "F16", "fp16", host=1),
    DataType("bfloat16", 2, "BFLOAT16", "BF16", "BF16", "bf16"),
    DataType("float8_e4m3fn", 1, "FLOAT8E4M3FN", "FP8", "F8_E4M3", "fp8e4nv", host=2),
    DataType("int64", 8, "INT64", "INT64", "I64", "i64", host=3),
    DataType("int32", 4, "INT32", "INT32", "I32", "i32", host=4),
)
DTYPES: dict[str, DataType] = {each.name: each for each in _TABLE}
FROM_ONNX = {each.onnx: each for each in _TABLE}
FROM_TENSORRT = {each.tensorrt: each for each in _TABLE}
FROM_SAFETENSORS = {each.safetensors: each for each in _TABLE}


def of_torch(dtype: torch.dtype) -> DataType:
    """The table's entry for a type of PyTorch; KeyError where it has none."""
    return DTYPES[str(dtype).removeprefix("torch.")]
