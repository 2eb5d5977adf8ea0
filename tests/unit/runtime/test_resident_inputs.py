"""Resident inputs with the CPU in place of CUDA: content in pieces, no memory taken after the start, and what is staged twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onerec_trt.core.errors import RequestError
from onerec_trt.core.graph_io import GraphIO, GraphTensor
from onerec_trt.export.contracts import ItemSizes, item_serving_io, serving_io
from onerec_trt.runtime import host_to_gpu
from onerec_trt.runtime.plan_record import GpuMemory, facts_of_build
from onerec_trt.runtime.resident_inputs import ResidentInputs
from torch.utils._python_dispatch import TorchDispatchMode

from .cpu_as_cuda import Event, Stream, use_cpu

ROWS, COLUMNS, PIECE = 5, 3, 16  # 60 bytes: three pieces and a part of one
PLACES = {"aten.copy_", "aten.slice", "aten.view", "aten.detach", "aten.alias"}  # operations that take no memory
CONTENT = np.arange(ROWS * COLUMNS, dtype=np.int32).reshape(ROWS, COLUMNS)


@pytest.fixture
def residents(monkeypatch: pytest.MonkeyPatch) -> ResidentInputs:
    use_cpu(monkeypatch)
    monkeypatch.setattr(host_to_gpu, "PIECE", PIECE)
    names = ("pairs", "entries")
    return ResidentInputs(GraphTensor(name=name, role=None, dtype="int32", axes=(ROWS, COLUMNS), kind="resident") for name in names)


def streams(count: int = 1) -> list[Any]:
    return [Stream() for _ in range(count)]


class Seen(TorchDispatchMode):
    """The operations that ran."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(str(func).rsplit(".", 1)[0])
        return func(*args, **(kwargs or {}))


def read_only() -> np.ndarray:
    array = CONTENT.copy()
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    "content",
    [CONTENT, read_only(), np.asfortranarray(CONTENT), torch.from_numpy(CONTENT), torch.from_numpy(CONTENT.T.copy()).T],
    ids=["array", "read only", "transposed", "tensor", "transposed tensor"],
)
def test_content_of_any_layout_arrives_in_pieces(residents: ResidentInputs, content: Any) -> None:
    Event.asked.clear()
    staged = residents.stage({"entries": content})
    pieces = [what for what, _ in Event.asked]
    assert pieces == ["wait"] + ["record", "wait"] * 4  # for the last swap, then for each piece before the next one is written
    residents.swap(staged, streams())
    assert np.array_equal(residents.buffers["entries"].numpy(), CONTENT)
    with pytest.raises(RequestError, match="not bound: pairs"):
        residents.require_bound("a.plan")


@pytest.mark.filterwarnings("error")
def test_neither_staging_nor_swapping_takes_memory(residents: ResidentInputs) -> None:
    made = Event.made
    with Seen() as seen:
        for number in range(3):
            staged = residents.stage({"pairs": CONTENT + number, "entries": read_only()})
            residents.swap(staged, streams(2))
    assert "aten.copy_" in seen.names
    assert seen.names <= PLACES
    assert Event.made == made
    assert np.array_equal(residents.buffers["pairs"].numpy(), CONTENT + 2)


def test_staging_leaves_what_batches_read_and_waits_for_the_swap_before(residents: ResidentInputs) -> None:
    residents.swap(residents.stage({"pairs": CONTENT}), streams())
    (swapped,) = [number for what, number in Event.asked[-1:] if what == "record"]
    Event.asked.clear()
    staged = residents.stage({"pairs": CONTENT + 1})
    assert Event.asked[0] == ("wait", swapped)
    assert np.array_equal(residents.buffers["pairs"].numpy(), CONTENT)
    for _ in range(2):
        residents.swap(staged, streams())
        assert np.array_equal(residents.buffers["pairs"].numpy(), CONTENT + 1)


def test_what_was_staged_over_is_refused(residents: ResidentInputs) -> None:
    residents.swap(residents.stage({"pairs": CONTENT}), streams())
    old = residents.stage({"pairs": CONTENT + 1})
    latest = residents.stage({"entries": CONTENT})
    with pytest.raises(RequestError, match="other content was staged since"):
        residents.swap(old, streams())
    assert np.array_equal(residents.buffers["pairs"].numpy(), CONTENT)
    residents.swap(latest, streams())
    residents.require_bound("a.plan")


def test_the_record_of_a_plan_counts_both_buffers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_cpu(monkeypatch)
    empty, on_gpu = torch.empty, []

    def counted(*shape: Any, device: Any = None, **options: Any) -> torch.Tensor:
        tensor = empty(*shape, **options)
        on_gpu.extend([tensor.nbytes] if device == "cuda" else [])
        return tensor

    monkeypatch.setattr(torch, "empty", counted)
    follows = item_serving_io(64, 8, ItemSizes(codebook=100, items=70, excluded=5, classes=9))
    ResidentInputs(follows.resident)
    opened, following = (_gpu_memory(tmp_path, io) for io in (serving_io(64, 8), follows))
    assert (opened.resident, following.resident) == (0, sum(on_gpu))
    assert following.tensors - opened.tensors == 4 * 2 * (3 + 9 + 5)  # rules of two requests
    assert following.peak == following.plan + following.scratch + following.tensors + following.resident


def _gpu_memory(folder: Path, io: GraphIO) -> GpuMemory:
    """Of a plan for up to two requests."""
    (plan := folder / "sm90.plan").write_bytes(b"a plan")
    built = {"version": "10.6.0", "builder_flags": (), "build_seconds": 1, "peak_memory_bytes": 1, "scratch_bytes": 7, "warnings": ()}
    shapes = {tensor.name: (tensor.shape(2, 32),) * 3 for tensor in io.per_request}
    memory: GpuMemory = facts_of_build(plan, built, io, [shapes])["gpu_memory"]
    return memory
