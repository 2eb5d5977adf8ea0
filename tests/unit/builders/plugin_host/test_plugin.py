"""The compiled plugin, driven as TensorRT drives it, over a driver that writes down what it is asked."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from onerec_trt.builders.headers import cuda_headers, tensorrt_headers
from onerec_trt.builders.host_library import find_compiler, host_library
from onerec_trt.core.errors import MissingExtraError
from onerec_trt.operators.launch.encoding import encode
from onerec_trt.operators.launch.program import (
    Buffer,
    Input,
    InputType,
    Kernel,
    Launch,
    Output,
    Program,
    Scratch,
    Tensor,
    Variant,
    cdiv,
    dim,
    minimum,
)

ROWS = dim(0, 0)
GEMM = Kernel(b"the cubin\0", "gemm", warps=8, shared_bytes=200_000, global_scratch_bytes=384)
SMALL = replace(GEMM, entry="small", warps=4, shared_bytes=0, global_scratch_bytes=0, dependent=True)
PROGRAM = Program(
    inputs=(InputType("float16", (None, 64)),),
    outputs=(Tensor("float8_e4m3fn", (ROWS, cdiv(ROWS * 64, 128) - 1)),),
    scratch=(Buffer(ROWS * 4, clear=True), Buffer(100)),
    variants=(
        Variant(ROWS.lt(64), (Launch(SMALL, (ROWS, 1, 1), (Input(0), Output(0))),)),
        Variant(
            1,
            (
                Launch(GEMM, (minimum(132, cdiv(ROWS, 128)), 1, 1), (Input(0), Scratch(0))),
                Launch(SMALL, (1, 1, 1), (Scratch(1), Output(0))),
            ),
        ),
    ),
)

Drive = Callable[..., list[str]]


@pytest.fixture(scope="module", params=["10.6.0", "11.4.0"])
def drive(request: pytest.FixtureRequest, host_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Drive:
    """Runs the driver's program with a launch program and row counts; gives its lines. `broken` names what the CUDA driver fails at."""
    try:
        compiler = find_compiler()
        includes = (tensorrt_headers(int(request.param.partition(".")[0])), cuda_headers())
    except MissingExtraError as error:
        pytest.skip(error.what)
    folder, here = tmp_path_factory.mktemp("drive"), Path(__file__).parent
    host = host_library(request.param, host_cache)
    flags = ("-std=c++17", "-O1", "-pthread", *(argument for include in includes for argument in ("-isystem", str(include))))
    subprocess.run([*compiler, *flags, "-fPIC", "-shared", str(here / "fake_driver.cpp"), "-o", str(folder / "libcuda.so.1")], check=True)
    subprocess.run([*compiler, *flags, str(here / "drive.cpp"), "-o", str(folder / "drive"), "-ldl"], check=True)

    def run(program: Program | bytes, *rows: int, broken: str = "", driver: Path = folder, attached: bool = True) -> list[str]:
        blob = program if isinstance(program, bytes) else encode(program)
        (folder / "program").write_bytes(blob)
        environment = {**os.environ, "LD_LIBRARY_PATH": str(driver), "FAKE_DRIVER": broken, **({} if attached else {"UNATTACHED": "1"})}
        command = [str(folder / "drive"), str(host.path), str(folder / "program"), *map(str, rows)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode >= 0, f"it crashed: {done.stderr}"
        return done.stdout.splitlines()

    return run


def test_from_the_field_to_the_launch(drive: Drive) -> None:
    lines = drive(encode(PROGRAM) + b"\0", 300, 3, 0)
    assert lines[:3] == [
        "KernelProgram 1 '' program",
        "output type 6 rows (((rows*64)/^128)-1)",
        f"configure 0 supported 1 workspace {1280 + 256 + 1280}",  # two buffers, and 3 blocks of 384 bytes, each in steps of 256
    ]
    runs = "\n".join(lines).split("enqueue 0\n")
    launch = "threads {} shared {} stream 0x57{} arguments {}"
    assert [line for line in runs[0].splitlines() if line.startswith(("set", "launch"))] == [
        "set 0x100000 1200 bytes to 0",
        f"launch gemm 3x1x1 {launch.format(256, 200_000, '', '0x1000 0x100000 0x100600 0')}",
        f"launch small 1x1x1 {launch.format(128, 0, ' early', '0x100500 0x2000 0 0')}",
    ]
    assert runs[1].splitlines() == ["shape 0", f"launch small 3x1x1 {launch.format(128, 0, ' early', '0x1000 0x2000 0 0')}"]
    assert runs[2].splitlines()[0] == "shape 0"
    assert "launch" not in runs[2]


def test_what_is_loaded_is_loaded_once_and_before_the_first_launch(drive: Drive) -> None:
    lines = drive(PROGRAM, 300)
    assert lines.count("load the cubin") == lines.count("unload") == 1
    assert lines.index("shared 200000") < lines.index("shape 0", 5)
    last_load = max(number for number, line in enumerate(lines) if line.startswith(("load", "function", "shared")))
    assert last_load < min(number for number, line in enumerate(lines) if line.startswith("launch"))
    assert lines[-2:] == ["push 0xc0", "unload"]


def test_a_node_that_is_timed_during_a_build_loads_at_its_first_launch(drive: Drive) -> None:
    lines = drive(PROGRAM, 300, attached=False)
    assert lines.count("load the cubin") == 1
    assert lines.index("load the cubin") < next(number for number, line in enumerate(lines) if line.startswith("launch"))
    assert "enqueue 0" in lines


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("cuModuleLoadData", "cuModuleLoadData failed: invalid argument (1); a plan runs on the compute capability"),
        ("cuModuleGetFunction", "kernel small: cuModuleGetFunction failed"),
        ("cuFuncGetAttribute", "kernel small: cuFuncGetAttribute failed"),
        ("cuFuncSetAttribute", "kernel gemm wants 200000 bytes of shared memory"),
        ("cuCtxGetCurrent", "cuCtxGetCurrent failed"),
        ("no context", "this thread has no CUDA context"),
        ("cuMemsetD8Async", "cuMemsetD8Async failed"),
        ("cuLaunchKernelEx", "kernel gemm: cuLaunchKernelEx failed"),
    ],
)
def test_failures_of_the_driver_are_told(drive: Drive, broken: str, message: str) -> None:
    lines = drive(PROGRAM, 300, broken=broken)
    assert any(line.startswith(f"error: {message}") for line in lines), lines
    assert "enqueue 0" not in lines


def test_without_a_driver_nothing_is_attached(drive: Drive, tmp_path: Path) -> None:
    if Path("/usr/lib/x86_64-linux-gnu/libcuda.so.1").exists():
        pytest.skip("this machine has the driver")
    lines = drive(PROGRAM, 300, driver=tmp_path)
    assert lines[-1].startswith("error: the CUDA driver does not load: libcuda.so.1")


def test_more_threads_than_a_kernel_was_compiled_for(drive: Drive) -> None:
    launch = Launch(replace(SMALL, warps=17), (1, 1, 1), (Input(0), Output(0)))
    lines = drive(replace(PROGRAM, variants=(Variant(1, (launch,)),)), 300)
    assert lines[-1] == "error: kernel small was compiled for at most 512 threads, not for 544"


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (b"no program", "error: node 'step0.q': a kernel program is damaged: it does not begin as one"),
        (b"", "error: node 'step0.q': it has no field 'program'"),
        (
            replace(PROGRAM, inputs=(InputType("float32", (None, 64)),)),
            "error: input 0 of a node has another type than its kernel program takes",
        ),
        (replace(PROGRAM, inputs=(InputType("float16", (None, 64, 1)),)), "error: the inputs of a node have other ranks"),
        (replace(PROGRAM, inputs=PROGRAM.inputs * 2), "error: a node has another number of inputs"),
    ],
)
def test_a_node_that_does_not_fit_is_refused(drive: Drive, program: Program | bytes, message: str) -> None:
    lines = drive(program, 300)
    assert lines[-1].startswith(message)


def test_other_shapes_are_refused_when_they_come(drive: Drive) -> None:
    lines = drive(replace(PROGRAM, inputs=(InputType("float16", (300, 64)),), scratch=(), variants=(Variant(ROWS.lt(64), ()),)), 300, 5)
    assert "error: a kernel program has no variant for inputs of 300x64" in lines
    assert "error: a kernel program takes inputs of 300x64 (-1: any), not of 5x64" in lines
    assert "enqueue 0" not in lines
