"""Gate 0, the quantized checkpoint: every tensor in it is what the checkpoint and the calibration requests give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..calibration.observation import flooding
from ..calibration.quantize import Amax, share_input_amax, stored_tensors, weight_amax
from ..calibration.quantized import QuantizedCheckpoint
from ..calibration.scoring import with_paths
from ..calibration.stage import Calibration, imported_amax
from ..calibration.targets import Target
from ..core.precision import Granularity
from ..core.progress import tracked
from ..core.threads import ahead
from ..models.checkpoint import Checkpoint, open_checkpoint
from ..models.device import compute_device
from ..models.layout import layout
from ..models.requests import read_requests
from .gates import Gate, gate

INPUT_SCALE_ROUNDING = 1e-4  # relative; FP32 sums in another order, through all layers


def source_gate(recipe: str, job: Calibration, quantized: QuantizedCheckpoint) -> Gate:
    """Codes and scales of the quantized checkpoint, tensor by tensor, made anew from its sources.

    Weight scales come from the largest absolute values in the checkpoint, static input scales from those that the calibration requests
    drive through the FP32 model, or both from the saved state that calibration imported.

    Args:
        recipe: Its name.
        job: What the quantized checkpoint was made from, and how.
        quantized: The checkpoint.
    """
    checkpoint = open_checkpoint(job.checkpoint, job.key_map).on(compute_device())
    amax = source_amax(job, checkpoint, quantized.settings)
    targets = {f"{target.name}.weight": target for target in quantized.settings}
    fp32 = layout(checkpoint.config).fp32

    def differing(name: str) -> tuple[int, list[str]]:
        _, expected = stored_tensors(name, checkpoint.tensor(name), name in fp32, targets.get(name), amax)
        return len(expected), [stored for stored, value in expected.items() if not _same(stored, quantized.tensor(stored), value)]

    compared, wrong = 0, []
    for count, names in tracked(ahead(differing, checkpoint.names), "sources", len(checkpoint.names)):
        compared += count
        wrong += names
    detail = f"{compared} tensors compared" + (f"; first that differs: {wrong[0]}" if wrong else "")
    return gate("quantized checkpoint from its sources", recipe, len(wrong) if compared else float("inf"), "<=", 0, detail)


def source_amax(job: Calibration, checkpoint: Checkpoint, targets: list[Target]) -> Callable[[Target, Tensor], Amax]:
    """The amax of a target, given its weight."""
    if (imported := imported_amax(job, checkpoint, targets)) is not None:
        return lambda target, weight_NK: imported[target.name].on(weight_NK.device)
    inputs = _input_amax(job, checkpoint, targets)
    return lambda target, weight_NK: Amax(weight_amax(weight_NK, target.granularity), inputs.get(target.name))


def _input_amax(job: Calibration, checkpoint: Checkpoint, targets: list[Target]) -> dict[str, float]:
    """The largest absolute value that each linear with a static scale reads in the calibration requests; empty where none has one."""
    static = [target for target in targets if target.granularity is Granularity.TENSOR]
    if not static:
        return {}
    requests = read_requests(job.requests, checkpoint.config, max_context=job.max_context, limit=job.options.max_requests)
    model = checkpoint.load_model()
    scoring = with_paths(model, requests, job.options.batch_size)
    seen: dict[str, float] = {}
    modules = dict(model.named_modules())
    handles = [modules[target.name].register_forward_pre_hook(_largest(seen, target.name)) for target in static]
    with flooding(model):
        scoring.run(model, "inputs of the quantized linears")
    for handle in handles:
        handle.remove()
    shared = share_input_amax(static, {target.name: Amax(torch.empty(0), seen[target.name]) for target in static})
    return {name: amax.input for name, amax in shared.items() if amax.input is not None}


def _largest(seen: dict[str, float], name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def hook(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        seen[name] = max(seen.get(name, 0.0), float(inputs[0].abs().max()) if inputs[0].numel() else 0.0)

    return hook


def _same(name: str, stored: Tensor, expected: Tensor) -> bool:
    """Equal in type, shape and every bit; an input scale, which a forward pass on another machine rounds otherwise, nearly."""
    stored = stored.to(expected.device)
    if (stored.dtype, stored.shape) != (expected.dtype, expected.shape):
        return False
    if name.endswith(".input_scale"):
        return torch.allclose(stored, expected, rtol=INPUT_SCALE_ROUNDING, atol=0)
    return torch.equal(*(tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (stored, expected)))
