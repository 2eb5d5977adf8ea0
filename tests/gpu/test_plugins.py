"""The plugin host on a GPU: a kernel of the test's own through a plan, and plans of the model with and without kernels."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import triton
import triton.language as tl
from onerec_trt.builders.host_library import host_library
from onerec_trt.builders.stage import build_stage
from onerec_trt.calibration.random_checkpoint import random_quantized_checkpoint
from onerec_trt.core.recipe import BuildOptions, ExportOptions, Profile
from onerec_trt.core.stages import run_stage
from onerec_trt.export.stage import export_stage
from onerec_trt.models.config import parse_config
from onerec_trt.operators.kernels.registry import FACTORIES
from onerec_trt.operators.launch.encoding import encode
from onerec_trt.operators.launch.program import (
    Buffer,
    Input,
    InputType,
    Int32,
    Kernel,
    Launch,
    Output,
    Program,
    Scratch,
    Tensor,
    Variant,
    cdiv,
    dim,
)
from onerec_trt.runtime.engine import Engine
from onerec_trt.runtime.plan_record import inspect_plan
from onerec_trt.runtime.tensorrt_api import load
from onerec_trt.runtime.tensorrt_runner import TensorRtRunner
from onnx import TensorProto, helper
from triton.backends.compiler import GPUTarget

from .gpu_memory import used_bytes

WIDTH, MAX_ROWS, BLOCK = 64, 4096, 1024
MICROSECONDS_PER_NODE = 20.0  # of CPU time to enqueue one node; a plain launch takes about 3
DRIFT_NAT = 0.05  # mean; two FP8 engines of two layers, whose roundings differ


# Loads a plan with nothing beside it, attaches its plugins to an execution context, and prints what the inspector says of them.
FRESH = """
import sys
from pathlib import Path
import torch
from onerec_trt.runtime.tensorrt_api import load
from onerec_trt.runtime.engine import Engine
torch.zeros(1, device="cuda")
print(Engine(load("tensorrt"), Path(sys.argv[1]).read_bytes(), "plan", host_code=True).layer_information())
"""


@triton.jit
def accumulate(x, y, total, count, BLOCK: tl.constexpr):
    """y = x + total, where total was cleared before and is left one larger."""
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < count
    before = tl.load(total + offsets, mask=inside)
    tl.store(y + offsets, (tl.load(x + offsets, mask=inside) + before).to(tl.float16), mask=inside)
    tl.store(total + offsets, before + 1, mask=inside)


def _kernel() -> Kernel:
    major, minor = torch.cuda.get_device_capability()
    signature = {"x": "*fp16", "y": "*fp16", "total": "*fp32", "count": "i32", "BLOCK": "constexpr"}
    source = triton.compiler.ASTSource(fn=accumulate, signature=signature, constexprs={"BLOCK": BLOCK})
    compiled = triton.compile(source, target=GPUTarget("cuda", major * 10 + minor, 32), options={"num_warps": 4})
    known = compiled.metadata
    return Kernel(compiled.asm["cubin"], known.name, known.num_warps, known.shared, known.global_scratch_size, known.profile_scratch_size)


def _program() -> Program:
    """x + 0 below 16 rows, x + 1 from there on: the second launch sees what the first left in the cleared scratch."""
    count = dim(0, 0) * WIDTH
    launch = Launch(_kernel(), (cdiv(count, BLOCK), 1, 1), (Input(0), Output(0), Scratch(0), Int32(count)))
    return Program(
        inputs=(InputType("float16", (None, WIDTH)),),
        outputs=(Tensor("float16", (dim(0, 0), WIDTH)),),
        variants=(Variant(dim(0, 0).lt(16), (launch,)), Variant(1, (launch, launch))),
        scratch=(Buffer(count * 4, clear=True),),
    )


def _plan(nodes: int) -> bytes:
    """A chain of plugin nodes from x to y."""
    blob = encode(_program())
    names = ["x", *(f"t{number}" for number in range(1, nodes)), "y"]
    plugin = {"program": blob, "plugin_version": "1", "plugin_namespace": "", "domain": "onerec"}
    chain = [helper.make_node("KernelProgram", [a], [b], name=f"node.{b}", **plugin) for a, b in pairwise(names)]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, ["rows", WIDTH]) for name in ("x", "y")]
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("onerec", 1)]
    model = helper.make_model(helper.make_graph(chain, "chain", ends[:1], ends[1:]), opset_imports=opsets, ir_version=10)
    onnx.load_model_from_string(model.SerializeToString())
    bindings = load("tensorrt")
    host = host_library(bindings.version)
    network = bindings.parse(model.SerializeToString(), Path("model.onnx"), lambda severity, message: None, (host.path,))
    shapes = {"x": ((1, WIDTH), (256, WIDTH), (MAX_ROWS, WIDTH))}
    return bytes(memoryview(network.build(compute_capability=None, profiles=[shapes]).plan))


class RunnablePlan:
    """A plan of `_plan`, ready to run on a stream of its own."""

    def __init__(self, plan: bytes) -> None:
        self.engine = Engine(load("tensorrt"), plan, "chain.plan", host_code=True)
        self.stream = torch.cuda.Stream()
        self._scratch = torch.empty(max(1, self.engine.scratch_bytes), dtype=torch.uint8, device="cuda")
        self._execution = self.engine.execution(0, self._scratch.data_ptr(), self._scratch.numel(), self.stream.cuda_stream)

    def bind(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.full_like(x, torch.nan)
        assert self._execution.set_inputs({"x": tuple(x.shape)}) == {"y": tuple(x.shape)}
        self._execution.bind("x", x.data_ptr())
        self._execution.bind("y", y.data_ptr())
        return y

    def enqueue(self) -> None:
        self._execution.enqueue(self.stream.cuda_stream)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bind(x)
        self.stream.wait_stream(torch.cuda.current_stream())
        self.enqueue()
        self.stream.synchronize()
        return y


@pytest.fixture(scope="module")
def plan() -> bytes:
    return _plan(3)


def _rows(count: int) -> torch.Tensor:
    return torch.randint(-100, 100, (count, WIDTH), device="cuda").half()


@pytest.mark.parametrize("rows", [1, 15, 16, 17, 1000, MAX_ROWS])
def test_a_kernel_runs_in_a_plan(plan: bytes, rows: int) -> None:
    x = _rows(rows)
    assert torch.equal(RunnablePlan(plan)(x), x + (3 if rows >= 16 else 0))


def test_shapes_come_and_go_without_growth(plan: bytes) -> None:
    """The first shapes may grow what the driver and PyTorch keep; ten thousand more must not."""
    chain = RunnablePlan(plan)
    counts = np.random.default_rng(0).integers(1, MAX_ROWS, 11_000)
    used = []
    for part in (counts[:1000], counts[1000:]):
        for count in part:
            x = _rows(int(count))
            assert torch.equal(chain(x), x + (3 if count >= 16 else 0))
        used.append(used_bytes())
    assert used[1] <= used[0]


def test_a_run_can_be_captured(plan: bytes) -> None:
    chain = RunnablePlan(plan)
    x = _rows(100)
    y = chain.bind(x)
    chain.enqueue()  # TensorRT itself wants one run before a capture
    chain.stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=chain.stream):
        chain.enqueue()
    for _ in range(3):
        x.copy_(_rows(100))
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(y, x + 3)


def test_a_plan_loads_in_a_fresh_process(plan: bytes, tmp_path: Path) -> None:
    (tmp_path / "chain.plan").write_bytes(plan)
    command = [sys.executable, "-c", FRESH, str(tmp_path / "chain.plan")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    layers = [layer for layer in json.loads(done.stdout)["Layers"] if "lugin" in layer["LayerType"]]
    assert len(layers) == 3, done.stdout
    assert all("node." in layer["Name"] + layer.get("Metadata", "") for layer in layers), done.stdout


def test_what_a_node_costs_the_cpu(record_property: Callable[[str, object], None]) -> None:
    nodes, rounds = 300, 20
    chain = RunnablePlan(_plan(nodes))
    chain.bind(_rows(1))
    samples = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        start = time.perf_counter()
        chain.enqueue()
        samples.append((time.perf_counter() - start) / nodes * 1e6)
    median = float(np.median(samples))
    record_property("microseconds_per_node", median)
    print(f"{median:.2f} us of CPU time per node")
    assert median < MICROSECONDS_PER_NODE


CONFIG = {"d_model": 256, "n_layers": 2, "n_heads": 2, "d_head": 128, "embed_dim": 16, "codebook": 256, "ffn_hidden": 512}


Arrays = dict[str, np.ndarray[Any, Any]]


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """Folders of plans of one export, with and without plugins."""
    root = tmp_path_factory.mktemp("plugins")
    random_quantized_checkpoint(parse_config(CONFIG), "fp8-row", root / "quantized", 0)
    run_stage(export_stage(ExportOptions(beam=(16,) * 3), root / "quantized", root / "exported"))
    folders = {}
    for plugins in (False, True):
        options = BuildOptions(target="tensorrt", profiles=(Profile(batch=(1, 8, 8), context=(1, 64, 128)),), plugins=plugins)
        folders[plugins] = root / f"plans-{plugins}"
        run_stage(build_stage(options, "fp8-row", root / "exported", folders[plugins]))
    return folders


def _scoring(folder: Path) -> Path:
    return next(folder.glob("*-scoring.plan"))


def _serving(folder: Path) -> Path:
    return next(path for path in folder.glob("*.plan") if not path.stem.endswith("scoring"))


def _batch(batch: int, context: int) -> Arrays:
    rng = np.random.default_rng(1000 * batch + context)
    features = rng.standard_normal((batch, context, parse_config(CONFIG).feature_width)).astype(np.float16)
    return {"features": features, "lengths": rng.integers(0, context // 3 + 1, (batch, 3))}


def _same_bits(actual: Arrays, expected: Arrays) -> bool:
    return all(actual[name].tobytes() == array.tobytes() for name, array in expected.items())


@pytest.mark.parametrize(("graphs", "count"), [(0, 10_000), (2, 400)])
def test_threads_and_shapes_come_and_go_without_growth(plans: dict[bool, Path], graphs: int, count: int) -> None:
    """Four threads and more shapes than there is room for CUDA graphs. The first batches may grow what is kept."""
    shapes = [(batch, context) for batch in (1, 2, 5, 8) for context in (1, 17, 64, 100, 128)]
    alone = TensorRtRunner.load(_serving(plans[True]), graphs=0)
    batches = [_batch(*shape) for shape in shapes]
    expected = [alone(batch) for batch in batches]
    runner = TensorRtRunner.load(_serving(plans[True]), executions=4, graphs=graphs)
    used = []
    with ThreadPoolExecutor(4) as pool:
        for most in (count // 4, count):
            order = np.random.default_rng(most).integers(len(batches), size=most)
            answers = pool.map(lambda number: _same_bits(runner(batches[number]), expected[number]), order)
            assert all(answers)
            used.append(used_bytes())
    assert used[1] <= used[0]


def test_every_product_of_a_plan_with_plugins_is_counted(plans: dict[bool, Path]) -> None:
    native, plugins = (inspect_plan(_scoring(plans[which])) for which in (False, True))
    assert plugins.plugins is not None
    assert set(plugins.plugins.nodes) <= set(FACTORIES)
    assert plugins.fp8_gemms.expected == plugins.fp8_gemms.found == native.fp8_gemms.expected
    assert any("lugin" in layer.kind for layer in plugins.layers)


def test_kernels_and_native_layers_agree(plans: dict[bool, Path]) -> None:
    rng = np.random.default_rng(0)
    width = parse_config(CONFIG).feature_width
    inputs = {
        "features": rng.standard_normal((8, 64, width)).astype(np.float16),
        "lengths": np.full((8, 3), 21),
        "sids": rng.integers(0, 256, (8, 16, 3)),
    }
    native, plugins = (TensorRtRunner.load(_scoring(plans[which]))(inputs)["log_probabilities"] for which in (False, True))
    assert np.isfinite(plugins).all()
    assert np.abs(native - plugins).mean() < DRIFT_NAT
