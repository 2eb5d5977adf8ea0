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

import importlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import triton.language as tl
from onerec_trt.builders.fusions.fusion import Fusion
from onerec_trt.builders.fusions.registry import FUSIONS
from onerec_trt.core.dtypes import DTYPES, of_torch
from onerec_trt.operators.kernels.registry import FACTORIES, program_of
from onerec_trt.operators.launch.case import Trial
from onerec_trt.operators.launch.compile import Build
from onerec_trt.operators.launch.node import Node
from onerec_trt.operators.launch.program import Float32, Input, InputType, Int32, Int64, Output, Program, Scratch, evaluated
from onerec_trt.operators.launch.tiles import Tiles, committed_tiles
from onerec_trt.operators.registry import OPERATORS
from spared_time import spare_time
from torch import Tensor
from triton.runtime import interpreter
from uncompiled import Builds

E4M3 = torch.float8_e4m3fn
CAPABILITY = "9.0"
POINTED = {each.pointer: each.torch for each in DTYPES.values()} | {"*i32": torch.int32, "*i8": torch.int8}  # what scratch holds
# Names of functions in inline assembly.
EMULATED = {
    "sigmoid": lambda x: 1.0 / (1.0 + tl.exp(-x)),
    "exp2": lambda x: tl.exp2(x),
    "await_previous": lambda: None,
    "prefetch": lambda *_: None,
}
builds = Builds()


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
    spare_time()


def kernel_of(build: Build) -> Any:
    """The kernel's function. What is inline assembly is replaced wherever a module of kernels defines or imports it."""
    found = getattr(importlib.import_module(build.module), build.function)
    for name, module in sys.modules.items():
        if name.startswith("onerec_trt.operators.kernels."):
            for function in EMULATED.keys() & vars(module).keys():
                setattr(module, function, EMULATED[function])
    return found


def new_scratch(program: Program, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Buffers as a run finds them: zeros where it clears them, else rubbish."""
    sizes = evaluated([buffer.bytes for buffer in program.scratch], [tuple(tensor.shape) for tensor in inputs])
    return [torch.full((size,), 0 if each.clear else 0xA5, dtype=torch.uint8) for size, each in zip(sizes, program.scratch, strict=True)]


def execute(program: Program, inputs: Sequence[Tensor], scratch: Sequence[Tensor] | None = None) -> list[Tensor]:
    """Run the launches in order. `scratch` is what `new_scratch` gave; default: made here."""
    shapes = [tuple(tensor.shape) for tensor in inputs]
    promised = zip(program.outputs, program.output_shapes(shapes), strict=True)
    outputs = [torch.full(shape, 77.0).to(DTYPES[output.dtype].torch) for output, shape in promised]
    memory = new_scratch(program, inputs) if scratch is None else scratch
    for launch in program.variant(shapes).launches:
        build = builds[int(launch.kernel.entry)]
        kernel = kernel_of(build)
        variables = [name for name in kernel.arg_names if name not in build.constants]
        values: dict[str, object] = {}
        for name, kind, argument in zip(variables, build.types, launch.arguments, strict=True):
            match argument:
                case Input(index):
                    values[name] = inputs[index]
                case Output(index):
                    values[name] = outputs[index]
                case Scratch(index):
                    values[name] = memory[index].view(POINTED[kind])
                case Int32(value):
                    values[name] = evaluated([value], shapes)[0]
                case Float32(value):
                    values[name] = value
                case Int64():
                    values[name] = torch.zeros(1)  # no address
        kernel[evaluated(launch.grid, shapes)](**values, **build.constants)
    return outputs


def tiles_for(trial: Trial) -> Tiles:
    """Tiles of launches beside the one that is tried are the committed ones."""
    return committed_tiles().with_entries(() if trial.tile is None else trial.case.entries(CAPABILITY, trial.tile))


def program_for(trial: Trial) -> Program:
    return program_of(trial.case, CAPABILITY, tiles_for(trial), builds.numbered)


def as_array(tensor: Tensor) -> np.ndarray:
    """Codes as the values they stand for; integers stay exact."""
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def check(trial: Trial) -> dict:
    """Distance to the PyTorch reference by the operator's own comparison, and how many values differ.

    The same random inputs whatever other kernels there are.
    """
    torch.manual_seed(0)
    case, operator = trial.case, OPERATORS[trial.case.operator]
    inputs = list(trial.inputs) or case.tensors("cpu")
    actual = execute(program_for(trial), trial.given or inputs)
    reference = case.reference(inputs)
    made = [*actual, *reference[len(actual) :]]  # outputs that nobody reads are not made
    arrays = [[t.float().numpy() for t in tensors] for tensors in (made, reference)]
    flips = [
        float((a != e).mean()) if not np.isnan(e).any() else float((np.isnan(a) != np.isnan(e)).mean())
        for a, e in zip(*arrays, strict=True)
    ]
    return {
        "case": f"{case.operator} {[list(t.shape) for t in inputs]} {case.attributes} {trial.tile} {case.read or ''}",
        "operator": case.operator,
        "agreement": FACTORIES[case.operator].cases.agreement,
        "difference": operator.compare(*arrays, [as_array(t) for t in inputs], case.attributes),
        "threshold": operator.threshold,
        "unequal": max(flips),
    }


def neighbors_moved(trial: Trial) -> dict:
    """Spoils the middle one of three requests; whether a bit of the others' values is then another."""
    inputs = trial.case.tensors("cpu")
    poisoned = [each.clone() for each in inputs]
    for each in poisoned:
        if each.is_floating_point() and each.dim() > 1:  # a static scale is no request's
            each.unflatten(0, (3, -1))[1] = float("nan")
    program = program_for(trial)
    pairs = list(zip(execute(program, inputs), execute(program, poisoned), strict=True))
    moved = any(not torch.equal(*(each.view(torch.uint8).unflatten(0, (3, -1))[[0, 2]] for each in pair)) for pair in pairs)
    noticed = pairs[0][1].unflatten(0, (3, -1))[1].isnan().all()
    return {"case": f"{trial.case.operator} {trial.tile}", "operator": trial.case.operator, "moved": moved or not noticed}


def kernels_of_parts(fusion: Fusion, trial: Trial, inputs: Sequence[Tensor]) -> list[Tensor]:
    """What the kernels of a fusion's parts give, one after the other; that of the first before the others where the fusion keeps it."""
    waiting, results, kept = list(inputs), list[Tensor](), list[Tensor]()
    if fusion.one_tensor is not None:
        first, second = fusion.one_tensor
        waiting.insert(second, waiting[first])
    for part in fusion.parts:
        function = OPERATORS[part.operator].function.to_function_proto()
        given = [waiting.pop(0) for _ in range(len(function.input) - len(results[:1]))]
        given[part.reads : part.reads] = results[:1]
        types = tuple(InputType(of_torch(tensor.dtype).name, tuple(tensor.shape)) for tensor in given)
        attributes = {name: trial.case.attributes[name] for name in function.attribute}
        program = FACTORIES[part.operator].program(
            Node(part.operator, types, attributes, CAPABILITY, tiles=tiles_for(trial), compile=builds.numbered)
        )
        results = execute(program, given)
        kept = kept or (results[:1] if fusion.keeps else [])
    return [*kept, *results]


def fused_beside_parts(trial: Trial, fusion: Fusion) -> dict:
    """Whether a fused kernel gives the bits of the kernels of its parts."""
    inputs = list(trial.inputs) or trial.case.tensors("cpu")
    made = execute(program_for(trial), inputs)
    pairs = zip(made, kernels_of_parts(fusion, trial, inputs)[: len(made)], strict=True)
    equal = all(torch.equal(fused.view(torch.uint8), parts.view(torch.uint8)) for fused, parts in pairs)
    return {"case": f"{trial.case.operator} {trial.case.label}", "operator": trial.case.operator, "equal": equal}


def trials() -> Iterator[Trial]:
    torch.manual_seed(0)
    for factory in FACTORIES.values():
        yield from factory.cases.ragged()


if __name__ == "__main__":
    emulate_gpu()
    every = list(trials())
    neighbors = [neighbors_moved(trial) for trial in every if trial.case.requests == 3 and not trial.inputs]
    fusions = {fusion.fused.name: fusion for fusion in FUSIONS}
    fused = [fused_beside_parts(trial, fusions[trial.case.operator]) for trial in every if trial.case.operator in fusions]
    print(json.dumps({"reference": [check(trial) for trial in every], "neighbors": neighbors, "fused": fused}))
