"""Plans for tests, without a GPU: a few bytes with a record and a verdict."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onerec_trt.core.artifacts import sha256, write_json
from onerec_trt.export.contracts import serving_io
from onerec_trt.runtime.plan_record import Fp8Gemms, GpuMemory, PlanRecord, PluginUse, WeightBytes, record_path
from onerec_trt.runtime.verdict import GateResult, write_verdict
from onerec_trt.server.repository.limits import Limits

GOOD = GateResult(name="overlap@10", value=0.95, threshold=0.9, comparison=">=", passed=True)
NESTED = (
    Limits(min_batch=1, max_batch=8, min_context=2, max_context=512),
    Limits(min_batch=1, max_batch=32, min_context=2, max_context=3072),
)
PLUGINS = PluginUse(host_sha256="0" * 64, nodes={}, fusions={}, fp8_accumulation="fast")


def profile(limits: Limits) -> Any:
    """A profile's shapes as a record has them."""
    sizes = [(limits.min_batch, limits.min_context), (limits.max_batch, limits.max_context), (limits.max_batch, limits.max_context)]
    return {"features": tuple((b, s, 64) for b, s in sizes), "lengths": tuple((b, 3) for b, _ in sizes)}


def write_plan(folder: Path, limits: Sequence[Limits] = NESTED, *, plugins: bool = True, **changes: Any) -> Path:
    """A plan and its record, built on an H200 with TensorRT 10.6."""
    folder.mkdir(parents=True, exist_ok=True)
    plan = folder / "sm90-b1-32-s2-3072.plan"
    plan.write_bytes(b"a plan")
    values: dict[str, Any] = {
        "plan": plan.name,
        "sha256": sha256(plan),
        "bytes": plan.stat().st_size,
        "target": "tensorrt",
        "library_version": "10.6.0",
        "compute_capability": "9.0",
        "driver": "580.1",
        "gpu": "NVIDIA H200",
        "io": serving_io(64, 8),
        "profiles": tuple(profile(each) for each in limits),
        "builder_flags": (),
        "fp8_gemms": Fp8Gemms(expected=0, found=0, missing=(), dequantized=0, how="counted"),
        "weight_bytes": WeightBytes(graph={}, plan={}),
        "build_seconds": 1.0,
        "peak_memory_bytes": 1,
        "gpu_memory": GpuMemory(plan=6, scratch=10, tensors=4, peak=20),
        "plugins": PLUGINS if plugins else None,
        **changes,
    }
    write_json(record_path(plan), PlanRecord(**values).model_dump(mode="json"))
    return plan


def prove(plan: Path, profiles: int = 2) -> Path:
    """Write the verdict that validates a plan."""
    write_verdict(plan, (GOOD,), tuple(range(profiles)), {"tensorrt": "10.6.0"})
    return plan
