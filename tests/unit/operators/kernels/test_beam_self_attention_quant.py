"""Launch programs of beam self-attention with quantization: what they give, what they are compiled for, what they refuse, cubins."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import triton
from onerec_trt.core.errors import BuildError
from onerec_trt.operators.kernels.registry import FACTORIES
from onerec_trt.operators.launch.compile import compiled
from onerec_trt.operators.launch.node import Node
from onerec_trt.operators.launch.program import Input, InputType, Kernel, Output, Program, evaluated
from onerec_trt.operators.launch.tiles import CAPABILITIES

from .uncompiled import Builds

QKV, PARENT, SCALE = InputType("float16", (None, 192)), InputType("int64", (None, 5)), InputType("float32", (1,))
ATTRIBUTES = {"rows": 5, "heads": 2}


def program_of(operator: str, *inputs: InputType, **attributes: int) -> tuple[Program, Builds]:
    builds = Builds()
    program = FACTORIES[operator].program(Node(operator, inputs, attributes or ATTRIBUTES, "9.0", compile=builds.named))
    assert program is not None
    return program, builds


def exponentials(kernel: Kernel, folder: Path) -> int:
    """Exponentials that a thread computes: one per score that its layout makes it hold."""
    cubin = folder / f"{kernel.entry}.cubin"
    cubin.write_bytes(kernel.cubin)
    disassembled = subprocess.run([triton.knobs.nvidia.nvdisasm.path, cubin], capture_output=True, text=True, check=True).stdout
    return disassembled.count("MUFU.EX2")


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_the_fused_kernel_compiles_in_the_layout_of_the_part(cubins, tmp_path, capability):
    """In another layout scores would be summed in another order, and some codes would differ from those of the parts."""
    qkv = InputType("float16", (None, 3 * 14 * 128))
    found = []
    for operator in ("BeamSelfAttention1", "BeamSelfAttention1QuantRow"):
        node = Node(operator, (qkv, qkv), {"rows": 5, "heads": 14}, capability, compile=lambda build: compiled(build, cubins))
        program = FACTORIES[operator].program(node)
        assert program is not None
        found.append(exponentials(program.variants[0].launches[0].kernel, tmp_path))
    assert found[0] == found[1] > 0


def test_a_row_has_one_cta_codes_and_a_scale():
    program, (build,) = program_of("BeamSelfAttention2QuantRow", QKV, QKV, QKV, PARENT)
    shapes = [(15, 192), (3, 192), (6, 192), (3, 5)]
    (launch,) = program.variant(shapes).launches
    assert evaluated(launch.grid, shapes) == (15, 1, 1)
    assert [output.dtype for output in program.outputs] == ["float8_e4m3fn", "float32"]
    assert program.output_shapes(shapes) == ((15, 64), (15, 1))
    assert launch.arguments[4:6] == (Output(0), Output(1))
    assert (build.constants["PER_ROW"], build.constants["HISTORY"], build.constants["HEAD"]) == (True, 2, 32)


@pytest.mark.parametrize(
    ("operator", "inputs", "scale"),
    [("BeamSelfAttention1QuantTensor", (QKV, QKV, SCALE), 2), ("BeamSelfAttention2QuantTensor", (QKV, QKV, QKV, PARENT, SCALE), 4)],
)
def test_a_static_scale_is_the_last_input(operator, inputs, scale):
    program, (build,) = program_of(operator, *inputs)
    assert [output.dtype for output in program.outputs] == ["float8_e4m3fn"]
    assert program.variants[0].launches[0].arguments[5] == Input(scale)
    assert build.constants["PER_ROW"] is False


@pytest.mark.parametrize(
    ("operator", "inputs", "message"),
    [
        ("BeamSelfAttention1QuantTensor", (QKV, QKV), "it has 2 inputs, needs 3"),
        ("BeamSelfAttention1QuantTensor", (QKV, QKV, InputType("float32", (64,))), "the last dimension of input 2 is 64, must be 1"),
        ("BeamSelfAttention1QuantTensor", (QKV, QKV, InputType("float16", (1,))), "input 2 is float16, must be float32"),
        ("BeamSelfAttention2QuantRow", (QKV, QKV, QKV, SCALE), "input 3 is float32, must be int64"),
        ("BeamSelfAttention1QuantRow", (QKV, InputType("float16", (None, 96))), "the last dimension of input 1 is 96, must be 192"),
        ("BeamSelfAttention1QuantRow", (InputType("float32", (None, 192)), QKV), "input 0 is float32, must be float16"),
    ],
)
def test_bad_nodes_are_named(operator, inputs, message):
    with pytest.raises(BuildError, match=message) as caught:
        program_of(operator, *inputs)
    assert caught.value.where == operator
