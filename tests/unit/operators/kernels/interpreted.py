"""Runs launch programs on the CPU in Triton's interpreter and prints how far each is from its operator's PyTorch meaning, as JSON.

A process of its own: TRITON_INTERPRET must be set before the kernels are imported. What the interpreter of Triton 3.6 does not
compute as a GPU does is replaced here: its cast to E4M3 neither rounds to even nor saturates, its fma rounds twice, and it
has no inline assembly (the sigmoid of SwiGLU).
"""

from __future__ import annotations

import json
import os

os.environ["TRITON_INTERPRET"] = "1"

from collections.abc import Iterator
from dataclasses import replace
from itertools import product as combinations

import numpy as np
import torch
import triton.language as tl
from onerec_trt.core.difference import difference
from onerec_trt.operators.kernels import gemm, gemm_pointers, quant, rms_norm, rms_norm_quant, swiglu
from onerec_trt.operators.kernels.compile import Build
from onerec_trt.operators.kernels.factories import FACTORIES
from onerec_trt.operators.kernels.factory import Node
from onerec_trt.operators.kernels.program import Float32, Input, InputType, Int32, Int64, Kernel, Output, Program, evaluated
from onerec_trt.operators.kernels.tiles import Entry, GemmTile, RowTile, Tiles
from onerec_trt.operators.operator import Attributes
from onerec_trt.operators.registry import OPERATORS
from torch import Tensor
from triton.runtime import interpreter

MODULES = {m.__name__.rpartition(".")[2]: m for m in (gemm, gemm_pointers, quant, rms_norm, rms_norm_quant, swiglu)}
DTYPES = {"float16": torch.float16, "float32": torch.float32, "float8_e4m3fn": torch.float8_e4m3fn}
E4M3 = torch.float8_e4m3fn
builds: list[Build] = []


def emulate_gpu() -> None:
    convert = interpreter._convert_float

    def convert_float(values, source, target, rounding):
        if target == tl.float8e4nv and source == tl.float32:
            return torch.from_numpy(np.ascontiguousarray(values)).clamp(-448, 448).to(E4M3).view(torch.uint8).numpy()
        if source == tl.float8e4nv:  # it takes NaN for 480
            exact = torch.from_numpy(np.ascontiguousarray(values)).view(E4M3)
            return exact.to({tl.float16: torch.float16, tl.float32: torch.float32}[target]).numpy().view(f"uint{target.primitive_bitwidth}")
        return convert(values, source, target, rounding)

    def fma(_self, x, y, z):
        exact = x.data.astype(np.float64) * y.data + z.data
        return interpreter.TensorHandle(exact.astype(np.float32), z.dtype.scalar)

    patch = interpreter._patch_lang_tensor

    def patch_tensor(tensor, scope):  # NumPy 2.4 no longer takes an array of one element for a number
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = patch_tensor
    interpreter._convert_float = convert_float
    interpreter.InterpreterBuilder.create_fma = fma
    swiglu.sigmoid = lambda x: 1.0 / (1.0 + tl.exp(-x))


def remember(build: Build) -> Kernel:
    builds.append(build)
    return Kernel(b"-", str(len(builds) - 1), build.warps, 0, 0)


def execute(program: Program, inputs: list[Tensor]) -> list[Tensor]:
    shapes = [tuple(tensor.shape) for tensor in inputs]
    outputs = [torch.full(shape, 77.0).to(DTYPES[o.dtype]) for o, shape in zip(program.outputs, program.output_shapes(shapes), strict=True)]
    for launch in program.variant(shapes).launches:
        build = builds[int(launch.kernel.entry)]
        values: list[object] = []
        for argument in launch.arguments:
            match argument:
                case Input(index):
                    values.append(inputs[index])
                case Output(index):
                    values.append(outputs[index])
                case Int32(value):
                    values.append(evaluated([value], shapes)[0])
                case Float32(value):
                    values.append(value)
                case Int64():
                    values.append(torch.zeros(1))
        kernel = getattr(MODULES[build.module], build.function)
        variables = [name for name in kernel.arg_names if name not in build.constants]
        kernel[evaluated(launch.grid, shapes)](**dict(zip(variables, values, strict=True)), **build.constants)
    return outputs


def node_of(operator: str, inputs: list[Tensor], attributes: Attributes, tile: RowTile | GemmTile, read: tuple[bool, ...] = ()) -> Node:
    names = {dtype: name for name, dtype in DTYPES.items()}
    dynamic = {0: tuple(inputs[0].shape[:-1])}
    types = tuple(
        InputType(names[t.dtype], tuple(None if n < t.dim() - 1 and t.shape[:-1] == dynamic[0] else s for n, s in enumerate(t.shape)))
        for t in inputs
    )
    families = ("rms_norm", "rms_norm_quant", "quant", "swiglu", "swiglu_quant") if isinstance(tile, RowTile) else tuple(
        base + middle + end for base, middle, end in combinations(("linear", "fp8_linear"), ("", "_promoted"), ("", "_add"))
    )  # fmt: skip
    shape = (64,) if isinstance(tile, RowTile) else (64, 64)
    tiles = Tiles(tuple(Entry("9.0", family, 1, shape, tile) for family in families))
    return Node(operator, types, attributes, "9.0", tiles=tiles, read=read, compile=remember)


def check(operator: str, inputs: list[Tensor], attributes: Attributes, tile: RowTile | GemmTile, read: tuple[bool, ...] = ()) -> dict:
    """Distance to the PyTorch meaning by the operator's own comparison, and how many codes differ."""
    program = FACTORIES[operator].program(node_of(operator, inputs, attributes, tile, read))
    actual = execute(program, inputs)
    truth = OPERATORS[operator]
    expected = list(truth.meaning(*inputs, **attributes))[: len(actual)]
    compare = truth.compare if len(actual) == len(truth.meaning(*inputs, **attributes)) else lambda a, e, *_: max(map(difference, a, e))
    arrays = [[t.float().numpy() for t in tensors] for tensors in (actual, expected)]
    flips = [
        float((a != e).mean()) if not np.isnan(e).any() else float((np.isnan(a) != np.isnan(e)).mean())
        for a, e in zip(*arrays, strict=True)
    ]
    return {
        "case": f"{operator} {[list(t.shape) for t in inputs]} {attributes} {tile} {read or ''}",
        "operator": operator,
        "difference": compare(*arrays, [t.float().numpy() for t in inputs], attributes),
        "threshold": truth.threshold,
        "unequal": max(flips),
    }


def cases() -> Iterator[tuple]:
    torch.manual_seed(0)
    for rows, width, tile in ((1, 96, RowTile(1, 128, 1)), (5, 640, RowTile(4, 256, 4)), (3, 200, RowTile(2, 512, 4))):
        x = torch.randn(rows, width).mul(3).half()
        x[rows // 2, 7] = 60000.0
        if rows > 1:
            x[0] = 0
        weight, scale = torch.randn(width).half(), torch.tensor([0.02])
        for operator, more in (("RmsNorm", []), ("RmsNormQuantRow", []), ("RmsNormQuantBlock", []), ("RmsNormQuantTensor", [scale])):
            yield operator, [x, weight, *more], {"epsilon": 1e-6}, tile
        yield "RmsNormQuantRow", [x, weight.float()], {"epsilon": 1e-6}, tile, (True, True, False)
        for operator, more in (("QuantRow", []), ("QuantTensor", [scale])):
            yield operator, [x, *more], {}, tile
        for operator, more in (("SwiGlu", []), ("SwiGluQuantRow", []), ("SwiGluQuantTensor", [scale])):
            yield operator, [x, *more], {}, tile
    bad = torch.randn(4, 256).half()
    bad[1, 3], bad[2, 5] = float("nan"), float("inf")
    for operator, more in (("QuantRow", []), ("QuantTensor", [torch.tensor([0.5])])):
        yield operator, [bad, *more], {}, RowTile(4, 256, 4)
    for operator, more in (("RmsNorm", []), ("RmsNormQuantRow", []), ("RmsNormQuantTensor", [torch.tensor([0.5])])):
        yield operator, [bad, torch.ones(256).half(), *more], {"epsilon": 1e-6}, RowTile(4, 256, 4)
    yield from products()


def products() -> Iterator[tuple]:
    pointers, persistent = GemmTile(16, 32, 128, 2, 4), GemmTile(32, 64, 128, 2, 4, group=2, programs=3, parts=2, tail=2)
    whole = replace(persistent, parts=4, tail=1, whole=True)
    for rows, k, n, tile in (
        (1, 96, 40, pointers),
        (37, 200, 72, pointers),
        (70, 272, 136, persistent),
        (45, 136, 104, whole),
        (1, 640, 64, whole),
    ):
        x, weight, residual = torch.randn(rows, k).half(), torch.randn(n, k).half(), torch.randn(rows, n).mul(100).half()
        yield "Linear", [x, weight], {}, tile
        yield "LinearAdd", [x, weight, residual], {}, tile
        codes = [x.float().to(E4M3), torch.rand(rows, 1) + 0.1, weight.float().to(E4M3), torch.rand(n) + 0.1]
        for promotion in (0, 128):
            yield "Fp8Linear", codes, {"promotion": promotion}, tile
            static = [codes[0], torch.tensor([0.3]), *codes[2:], residual]
            yield "Fp8LinearAdd", static, {"promotion": promotion}, tile
    x = torch.randn(2, 3, 64).half()  # leading dimensions are rows
    yield "Linear", [x, torch.randn(24, 64).half()], {}, pointers


if __name__ == "__main__":
    emulate_gpu()
    print(json.dumps([check(*case) for case in cases()]))
