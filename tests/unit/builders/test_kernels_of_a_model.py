"""The factories of all operators that have kernels, on the graphs of a small exported model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from onerec_trt.builders.kernel_programs import Kernels, use_kernels
from onerec_trt.builders.prepared_weights import PreparedWeights
from onerec_trt.core.recipe import Recipe
from onerec_trt.operators.kernels.compile import Build
from onerec_trt.operators.kernels.factories import FACTORIES, KernelFactory
from onerec_trt.operators.kernels.factory import Node
from onerec_trt.operators.kernels.program import Kernel, Program
from onerec_trt.operators.operator import DOMAIN


def uncompiled(factory: KernelFactory) -> KernelFactory:
    """The factory with kernels that nobody can run."""

    def kernel(build: Build) -> Kernel:
        return Kernel(b"cubin", build.function, build.warps, 0, 0)

    def program(node: Node) -> Program | None:
        return factory.program(replace(node, compile=kernel))

    return KernelFactory(program, factory.prepare)


@pytest.mark.parametrize("precision", ["fp16", "fp8-row"])
def test_every_operator_with_a_kernel_becomes_one(
    finished_recipe: Callable[[str], Recipe], finished_world: Path, tmp_path: Path, precision: str
) -> None:
    (path,) = (finished_world / "out").glob(f"**/{finished_recipe(precision).name}/**/model.onnx")
    model = onnx.load(path, load_external_data=False)
    before = Counter(node.op_type for node in model.graph.node if node.domain == DOMAIN)
    factories = {name: uncompiled(factory) for name, factory in FACTORIES.items()}
    made = use_kernels(model, Kernels(factories, "9.0", PreparedWeights(path.parent, tmp_path)))
    assert Counter(node.operator for node in made) == {name: count for name, count in before.items() if name in FACTORIES}
    attentions = {"ContextAttention", "BeamSelfAttention1", "BeamSelfAttention2"}
    rest = {"Linear", "RmsNorm"} if precision == "fp16" else {"Fp8LinearAdd", "RmsNormQuantRow"}
    assert {node.operator for node in made} >= attentions | rest
