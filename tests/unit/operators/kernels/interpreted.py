"""Runs launch programs on the CPU in Triton's interpreter and prints how far each is from its operator's PyTorch reference, as JSON.

A process of its own: TRITON_INTERPRET must be set before the kernels are imported. What the interpreter of Triton 3.6 does not
compute as a GPU does is replaced here: its cast to E4M3 neither rounds to even nor saturates, its fma rounds twice, and it
has no inline assembly (the sigmoid of SwiGLU, the powers of two of attention). It knows no Gluon: the product
and the warp-specialized attention are compared with PyTorch on a GPU only.
"""

from __future__ import annotations

import json
import os

os.environ["TRITON_INTERPRET"] = "1"

from collections.abc import Iterator
from itertools import product as combinations

import numpy as np
import torch
import triton.language as tl
from onerec_trt.core.difference import difference
from onerec_trt.core.dtypes import DTYPES, of_torch
from onerec_trt.operators.beam_step import beam_groups
from onerec_trt.operators.kernels import attention, beam_self_attention, beam_step, gemm, quant, rms_norm, rms_norm_quant, swiglu
from onerec_trt.operators.kernels.registry import FACTORIES
from onerec_trt.operators.launch.compile import Build
from onerec_trt.operators.launch.node import Node
from onerec_trt.operators.launch.program import (
    Buffer,
    Float32,
    Input,
    InputType,
    Int32,
    Int64,
    Kernel,
    Output,
    Program,
    Scratch,
    evaluated,
)
from onerec_trt.operators.launch.tiles import AttentionTile, Entry, GemmTile, RowTile, Tile, Tiles
from onerec_trt.operators.operator import Attributes
from onerec_trt.operators.registry import OPERATORS
from torch import Tensor
from triton.runtime import interpreter

KERNELS = (attention, beam_self_attention, beam_step, gemm, quant, rms_norm, rms_norm_quant, swiglu)
MODULES = {module.__name__: module for module in KERNELS}
POINTERS = {**{each.pointer: each.torch for each in DTYPES.values()}, "*i32": torch.int32}  # what scratch may hold
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
    attention.exp2 = lambda x: tl.exp2(x)


def remember(build: Build) -> Kernel:
    builds.append(build)
    return Kernel(b"-", str(len(builds) - 1), build.warps, 0, 0)


def execute(program: Program, inputs: list[Tensor], scratch: list[Tensor] | None = None) -> list[Tensor]:
    """The outputs; `scratch`, an empty list, gets what the kernels left in their buffers."""
    scratch = [] if scratch is None else scratch
    shapes = [tuple(tensor.shape) for tensor in inputs]
    outputs = [
        torch.full(shape, 77.0).to(DTYPES[o.dtype].torch) for o, shape in zip(program.outputs, program.output_shapes(shapes), strict=True)
    ]
    scratch += [new_scratch(buffer, shapes) for buffer in program.scratch]
    for launch in program.variant(shapes).launches:
        build = builds[int(launch.kernel.entry)]
        values: list[object] = []
        for argument, kind in zip(launch.arguments, build.types, strict=True):
            match argument:
                case Input(index):
                    values.append(inputs[index])
                case Output(index):
                    values.append(outputs[index])
                case Scratch(index):
                    values.append(scratch[index].view(POINTERS[kind]))
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


def new_scratch(buffer: Buffer, shapes: list[tuple[int, ...]]) -> Tensor:
    """Bytes as the host leaves them: zero where the program asks for it, else anything."""
    (size,) = evaluated([buffer.bytes], shapes)
    return torch.full((size,), 0 if buffer.clear else 0x55, dtype=torch.uint8)


def node_of(operator: str, inputs: list[Tensor], attributes: Attributes, tile: Tile, read: tuple[bool, ...] = ()) -> Node:
    entries = (Entry("9.0", family, 1, shape, tile) for family, shape in families(tile))
    return Node(operator, types_of(operator, inputs), attributes, "9.0", tiles=Tiles(tuple(entries)), read=read, compile=remember)


def families(tile: Tile) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every family such a tile can stand for, at some shape."""
    if isinstance(tile, AttentionTile):
        yield "context_attention", (64,)
    elif isinstance(tile, RowTile):
        yield from ((family, (64,)) for family in ("rms_norm", "rms_norm_quant", "quant", "swiglu", "swiglu_quant"))
    else:
        for base, middle, end in combinations(("linear", "fp8_linear"), ("", "_promoted"), ("", "_add")):
            yield base + middle + end, (64, 64)


def types_of(operator: str, inputs: list[Tensor]) -> tuple[InputType, ...]:
    leading = inputs[0].shape[:-1]

    def dynamic(tensor: Tensor, axis: int) -> bool:
        if "Attention" in operator or operator == "BeamStep":
            return axis == 0 or (tensor.dim() == 4 and axis == 2)  # requests, rows and tokens
        return axis < tensor.dim() - 1 and tensor.shape[:-1] == leading

    return tuple(
        InputType(of_torch(t.dtype).name, tuple(None if dynamic(t, n) else size for n, size in enumerate(t.shape))) for t in inputs
    )


def check(
    operator: str, inputs: list[Tensor], attributes: Attributes, tile: Tile, read: tuple[bool, ...] = (), given: list[Tensor] | None = None
) -> dict:
    """Distance to the PyTorch reference by the operator's own comparison, and how many values differ.

    `given` is what the kernel gets in the place of `inputs`, where it must make no difference.
    """
    program = FACTORIES[operator].program(node_of(operator, inputs, attributes, tile, read))
    actual = execute(program, given or inputs)
    truth = OPERATORS[operator]
    if operator == "BeamStep":
        attributes = beam_groups(inputs[1].shape[1], inputs[0].shape[1], int(attributes["width"]))
    expected = list(truth.reference(*inputs, **attributes))[: len(actual)]
    compare = truth.compare if len(actual) == len(truth.reference(*inputs, **attributes)) else lambda a, e, *_: max(map(difference, a, e))
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
    yield from context_attentions()
    yield from beam_attentions()
    yield from beam_steps()


def products() -> Iterator[tuple]:
    small, large = GemmTile(16, 32, 128, 2, 4), GemmTile(32, 64, 128, 2, 4, group=2)
    for rows, k, n, tile in ((1, 96, 40, small), (37, 200, 72, small), (70, 272, 136, large), (1, 640, 64, large)):
        x, weight, residual = torch.randn(rows, k).half(), torch.randn(n, k).half(), torch.randn(rows, n).mul(100).half()
        yield "Linear", [x, weight], {}, tile
        yield "LinearAdd", [x, weight, residual], {}, tile
        codes = [x.float().to(E4M3), torch.rand(rows, 1) + 0.1, weight.float().to(E4M3), torch.rand(n) + 0.1]
        for promotion in (0, 128):
            yield "Fp8Linear", codes, {"promotion": promotion}, tile
            static = [codes[0], torch.tensor([0.3]), *codes[2:], residual]
            yield "Fp8LinearAdd", static, {"promotion": promotion}, tile
    x = torch.randn(2, 3, 64).half()  # leading dimensions are rows
    yield "Linear", [x, torch.randn(24, 64).half()], {}, small


def context(lengths: list[int], groups: int, tokens: int, head: int, fill: float) -> tuple[Tensor, Tensor]:
    """Keys or values as ContextNorm leaves them, and the same with something else beyond the lengths."""
    beyond = (torch.arange(tokens) >= torch.tensor(lengths)[:, None])[:, None, :, None]
    values = torch.randn(len(lengths), groups, tokens, head).half()
    return values.masked_fill(beyond, 0), values.masked_fill(beyond, fill)


def context_attentions() -> Iterator[tuple]:
    pointers, descriptors = AttentionTile(16, 16, 2, 4), AttentionTile(32, 16, 2, 4, descriptors=True)
    for rows, heads, groups, head, tokens in (
        (1, 4, 2, 48, 20),
        (1, 14, 14, 32, 1),
        (37, 1, 1, 64, 37),
        (5, 6, 2, 128, 33),
        (3, 6, 1, 4, 16),  # rows of 8 bytes: no descriptors
        (2, 2, 2, 40, 7),
    ):
        lengths = [tokens, 0, (tokens + 1) // 2]
        query = torch.randn(len(lengths) * rows, heads * head).half()
        (key, bad_key), (value, bad_value) = (context(lengths, groups, tokens, head, float("nan")) for _ in range(2))
        for tile in (pointers, descriptors):
            rest = [torch.tensor(lengths)]
            given = [query, bad_key, bad_value, *rest]
            yield "ContextAttention", [query, key, value, *rest], {"rows": rows}, tile, (), given
            yield "ContextAttention", [query, key, key, *rest], {"rows": rows}, tile
    query, key = torch.randn(4, 64).mul(100).half(), torch.randn(2, 1, 33, 64).mul(100).half()  # one token takes all
    key[1, 0, 30, 5] = float("nan")
    yield "ContextAttention", [query, key, key, torch.tensor([33, 31])], {"rows": 2}, pointers


def beam_attentions() -> Iterator[tuple]:
    none = RowTile(1, 64, 1)
    for requests, rows, earlier, heads, head in ((1, 1, 1, 1, 32), (3, 5, 2, 3, 48), (2, 7, 7, 14, 64)):
        width = 3 * heads * head
        qkv, bos = torch.randn(requests * rows, width).half(), torch.randn(requests, width).half()
        yield "BeamSelfAttention1", [qkv, bos], {"rows": rows, "heads": heads}, none
        first, parent = torch.randn(requests * earlier, width).half(), torch.randint(0, earlier, (requests, rows))
        yield "BeamSelfAttention2", [qkv, bos, first, parent], {"rows": rows, "heads": heads}, none
        bad = bos.clone()
        bad[-1, -1] = float("nan")
        yield "BeamSelfAttention2", [qkv, bad, first, parent], {"rows": rows, "heads": heads}, none


def beam_steps() -> Iterator[tuple]:
    """interpreted_beam_step.py holds the selection to the last bit."""
    for requests, rows, vocabulary, width in ((2, 1, 32, 20), (3, 5, 200, 128), (1, 7, 1030, 40)):
        logits, scores = torch.randn(requests * rows, vocabulary).mul(3).half(), torch.randn(requests, rows)
        yield "BeamStep", [logits, scores], {"width": width}, RowTile(1, 64, 1)
        logits[0, :5], logits[-1, 3], scores[0, 0] = -torch.inf, torch.nan, -torch.inf
        yield "BeamStep", [logits, scores], {"width": width}, RowTile(1, 64, 1)


def neighbors_moved() -> Iterator[dict]:
    """Spoils one request of three; which of the others' values then have other bits?"""
    rows, heads, head = 5, 2, 32
    qkv, bos, first = (torch.randn(3 * n, 3 * heads * head).half() for n in (rows, 1, 2))
    parent = torch.randint(0, 2, (3, rows))
    key, value = torch.randn(3, 1, 20, head).half(), torch.randn(3, 1, 20, head).half()
    attended = [torch.randn(3 * rows, heads * head).half(), key, value, torch.tensor([20, 17, 9])]
    for operator, inputs, attributes, tile in (
        ("BeamSelfAttention1", [qkv, bos], {"rows": rows, "heads": heads}, RowTile(1, 64, 1)),
        ("BeamSelfAttention2", [qkv, bos, first, parent], {"rows": rows, "heads": heads}, RowTile(1, 64, 1)),
        ("ContextAttention", attended, {"rows": rows}, AttentionTile(16, 16, 2, 4)),
        ("ContextAttention", attended, {"rows": rows}, AttentionTile(16, 16, 2, 4, descriptors=True)),
    ):
        program = FACTORIES[operator].program(node_of(operator, inputs, attributes, tile))
        poisoned = [each.clone() for each in inputs]
        for each in poisoned:
            if each.is_floating_point():
                each.unflatten(0, (3, -1))[1] = float("nan")
        (clean,), (dirty,) = execute(program, inputs), execute(program, poisoned)
        bits = [each.view(torch.int16).view(3, rows, -1)[[0, 2]] for each in (clean, dirty)]
        moved = not torch.equal(*bits) or not dirty.view(3, rows, -1)[1].isnan().all()
        yield {"case": f"{operator} {tile}", "moved": moved}


if __name__ == "__main__":
    emulate_gpu()
    print(json.dumps({"reference": [check(*case) for case in cases()], "neighbors": list(neighbors_moved())}))
