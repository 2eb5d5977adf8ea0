"""What the driver is asked when a program runs on tensors: a driver that writes it down stands in for it."""

from __future__ import annotations

import ctypes
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from onerec_trt.core.errors import BuildError, GpuError
from onerec_trt.operators.launch import launch
from onerec_trt.operators.launch.program import (
    Buffer,
    Float32,
    Input,
    InputType,
    Int32,
    Int64,
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

STREAM, FUNCTION = 0x5EAF, 0xF00D
TYPES = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32, ctypes.c_float, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p)


class Driver:
    """Notes launches: grid, threads, shared memory, stream, and the values that the parameters point to."""

    def __init__(self, result: int = 0) -> None:
        self.result = result
        self.launches: list[tuple[Any, ...]] = []

    def cuLaunchKernelEx(self, configuration, function, parameters, extra):
        config = configuration._obj
        values = [kind.from_address(parameters[n]).value for n, kind in enumerate(TYPES)]
        grid, threads = (config.x, config.y, config.z), config.block_x * config.block_y * config.block_z
        early = [(attribute.number, attribute.value[0]) for attribute in config.attributes[: config.count]]
        self.launches.append((function.value, grid, threads, config.shared_bytes, config.stream, values, early, extra))
        return self.result

    def cuGetErrorString(self, result, text):
        text._obj.value = b"out of luck"
        return 0


@pytest.fixture
def driver(monkeypatch) -> Driver:
    noted = Driver()
    monkeypatch.setattr(launch, "_driver", lambda: noted)
    monkeypatch.setattr(launch, "_loaded", lambda *_: ctypes.c_void_p(FUNCTION))
    monkeypatch.setattr(launch, "_buffer", lambda size: torch.full((size,), 0xA5, dtype=torch.uint8))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=STREAM))
    return noted


def bound(rows: int, scratch: int = 512, dependent: bool = False) -> tuple[launch.Run, torch.Tensor, torch.Tensor]:
    x, y = torch.zeros(rows, 4), torch.zeros(rows, 4)
    arguments = (Input(0), Output(0), Int32(dim(0, 0)), Float32(0.5), Int64(1 << 40))
    one = Launch(Kernel(b"cubin", "k", 8, 1000, scratch, dependent=dependent), (cdiv(dim(0, 0), 4), 2, 1), arguments)
    return launch._bind(one, launch.Tensors([x], [y])), x, y


def test_arguments_end_with_the_hidden_scratch(driver):
    run, x, y = bound(9)
    assert driver.launches == [], "binding launches nothing"
    run()
    ((function, grid, threads, shared, stream, values, early, extra),) = driver.launches
    assert (function, grid, threads, shared, stream, early, extra) == (FUNCTION, (3, 2, 1), 256, 1000, STREAM, [], None)
    assert values[:5] == [x.data_ptr(), y.data_ptr(), 9, 0.5, 1 << 40]
    assert values[5]
    assert values[6] is None


def test_a_kernel_that_waits_by_itself_starts_early(driver):
    run, *_ = bound(9, dependent=True)
    run()
    assert driver.launches[0][6] == [(launch.PROGRAMMATIC_STREAM_SERIALIZATION, 1)]


def test_no_scratch_is_a_null_address(driver):
    run, *_ = bound(9, scratch=0)
    run()
    assert driver.launches[0][5][5:] == [None, None]


def test_an_empty_grid_is_not_launched(driver):
    run, *_ = bound(0)
    run()
    assert driver.launches == []


@pytest.mark.parametrize(("value", "fits"), [((1 << 31) - 1, True), (1 << 31, False), (-(1 << 31), True), (-(1 << 31) - 1, False)])
def test_a_value_beyond_32_bits_is_refused_as_in_the_host(driver, value, fits):
    one = Launch(Kernel(b"cubin", "k", 1, 0, 0), (1, 1, 1), (Int32(value),))
    with nullcontext() if fits else pytest.raises(BuildError, match=f"overflows: {value}"):
        launch._bind(one, launch.Tensors([], []))


def test_the_drivers_error_is_told(driver):
    driver.result = 719
    run, *_ = bound(9)
    with pytest.raises(GpuError, match="CUDA error 719: out of luck"):
        run()


class Followed(Driver):
    """Follows the address in a kernel's first parameter: notes which kernel found which bytes in its scratch, and fills them."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.found: list[tuple[int, int, bytes]] = []

    def cuLaunchKernelEx(self, configuration, _function, parameters, _extra):
        x = configuration._obj.x
        address = ctypes.c_void_p.from_address(parameters[0]).value
        self.found.append((x, address, ctypes.string_at(address, self.size)))
        ctypes.memset(address, x, self.size)
        return self.result


@pytest.mark.parametrize("clear", [True, False])
def test_launches_share_scratch_in_order_and_it_is_cleared_before_every_run(driver, monkeypatch, clear):
    followed = Followed(size=12)
    monkeypatch.setattr(launch, "_driver", lambda: followed)
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda _: True))
    first, second = (Launch(Kernel(b"cubin", "k", 1, 0, 0), (number, 1, 1), (Scratch(1),)) for number in (1, 2))
    program = Program(
        (InputType("float16", (None, 4)),),
        (Tensor("float16", (dim(0, 0), 4)),),
        (Variant(1, (first, second)),),
        (Buffer(64), Buffer(dim(0, 0) * 4, clear=clear)),
    )
    program.check()
    x = torch.zeros(3, 4, dtype=torch.float16)
    run = launch.bind(program, [x], [torch.zeros_like(x)])
    assert followed.found == [], "binding launches nothing"
    run()
    run()
    before = [b"\0", b"\0"] if clear else [b"\xa5", b"\2"]
    assert [(x, content) for x, _, content in followed.found] == [
        *((1, before[0] * 12), (2, b"\1" * 12)),
        *((1, before[1] * 12), (2, b"\1" * 12)),
    ]
    assert len({address for _, address, _ in followed.found}) == 1
