"""The only importer of NVIDIA ModelOpt: its configuration for each precision, its quantizers, and what can be read from them.

Written against ModelOpt 0.47. Nothing here knows about files or requests.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import Any, Literal

from torch import Tensor, nn

from ..core.precision import PRECISIONS, Granularity
from ..models.config import OneRecConfig
from ..models.layout import layout, of_all_experts
from ..models.onerec import OneRec
from ..operators import fp8
from .targets import Target, targets_of

ROW_BLOCKS = "onerec_fp8_1x128"  # name of our quantization backend
SMALLEST_AMAX = 2.0**-24  # ModelOpt's FP8 emulation takes a smaller amax for zero (tensor_quant.py, _fp8_eager)
Role = Literal["weight", "input"]

_E4M3: dict[str, Any] = {"num_bits": (4, 3)}
_WEIGHT: dict[Granularity, dict[str, Any]] = {
    Granularity.TENSOR: {"axis": 0},
    Granularity.ROW: {"axis": 0},
    Granularity.BLOCK: {"block_sizes": {-1: 128, -2: 128}},
    Granularity.ROW_BLOCK: {"axis": 0},
}
_INPUT: dict[Granularity, dict[str, Any]] = {
    Granularity.TENSOR: {"axis": None},
    Granularity.ROW: {"type": "dynamic", "block_sizes": {-1: None}},
    # ModelOpt's own dynamic blocks want MX or NV scales; ours are FP32, so a backend does the cast.
    Granularity.BLOCK: {"type": "dynamic", "axis": None, "backend": ROW_BLOCKS},
    Granularity.ROW_BLOCK: {"type": "dynamic", "axis": None, "backend": ROW_BLOCKS},
}


def modelopt_config(config: OneRecConfig, precision: str, keep_fp16: Iterable[str] = ()) -> dict[str, Any]:
    """ModelOpt's configuration: everything off, then by name what the precision quantizes, then off again what stays in FP16.

    ModelOpt's presets switch layers off by name (`*router*`, `output.*`, ...); none of them is used here.
    Later entries win, and `*` matches dots too.
    """
    scheme = PRECISIONS[precision]
    entries: list[dict[str, Any]] = [{"quantizer_name": "*", "enable": False}]
    linears, experts = (layout(config).patterns(kind) for kind in ("linear", "expert"))
    granularity = dict.fromkeys(linears, scheme.linears) | dict.fromkeys(experts, scheme.experts)
    granularity |= dict.fromkeys((pattern for pattern in experts if pattern.endswith(".down")), scheme.hidden)
    for pattern, each in granularity.items():
        if each is not Granularity.NONE:
            entries.append({"quantizer_name": f"{pattern}.weight_quantizer", "cfg": _E4M3 | _WEIGHT[each]})
            entries.append({"quantizer_name": f"{pattern}.input_quantizer", "cfg": _E4M3 | _INPUT[each]})
    targets = targets_of(config, precision, keep_fp16)
    kept = dict.fromkeys(of_all_experts(target.name) for target in targets if target.granularity is Granularity.NONE)
    entries += [{"quantizer_name": f"{pattern}.{role}_quantizer", "enable": False} for pattern in kept for role in ("weight", "input")]
    return {"quant_cfg": entries, "algorithm": "max"}


def insert_quantizers(
    model: OneRec, precision: str, forward_loop: Callable[[nn.Module], None] | None, keep_fp16: Iterable[str] = ()
) -> None:
    """Put ModelOpt's quantizers into the model, in place, and calibrate their amax ("max" algorithm).

    While `forward_loop` runs, the quantizers only watch: the model computes as before.
    Without a loop only the weights are calibrated.
    """
    _import_apart()
    import modelopt.torch.quantization as mtq
    from modelopt.torch.quantization.extensions import get_cuda_ext_fp8
    from modelopt.torch.quantization.nn import register_quant_backend
    from modelopt.torch.quantization.nn.modules.tensor_quantizer import is_registered_quant_backend

    _quieten()
    get_cuda_ext_fp8.extension = None  # on a GPU it would compile its own kernel first, for minutes; PyTorch's casts give the same
    if not is_registered_quant_backend(ROW_BLOCKS):
        register_quant_backend(ROW_BLOCKS, _fake_quantize_row_blocks)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints how many quantizers it inserted
        mtq.quantize(model, modelopt_config(model.config, precision, keep_fp16), forward_loop)


def enabled_quantizers(model: nn.Module) -> set[str]:
    """Names of all quantizers that are on, e.g. `blocks.0.ffn.up.weight_quantizer`."""
    from modelopt.torch.quantization.nn import TensorQuantizer

    return {name for name, module in model.named_modules() if isinstance(module, TensorQuantizer) and module.is_enabled}


def amax_of(model: nn.Module, linear: str, role: Role) -> Tensor | None:
    """Calibrated amax of a linear's weight or input as ModelOpt holds it, FP32; None when it is computed while running."""
    amax = quantizer(model, linear, role).amax
    return None if amax is None else amax.detach().float()


def set_amax(model: nn.Module, linear: str, role: Role, amax: Tensor) -> None:
    """Replace a calibrated amax; the shape is ModelOpt's: [N, 1], [blocks of N, 1, blocks of K, 1] or none."""
    quantizer(model, linear, role).amax = amax


def fake_quantized_weight(model: nn.Module, target: Target) -> Tensor:
    """The weight [N, K] as ModelOpt's model multiplies with it: quantized and dequantized, FP32."""
    weight = model.get_submodule(target.name).weight
    assert isinstance(weight, Tensor)
    result = quantizer(model, target.name, "weight")(weight.detach())
    assert isinstance(result, Tensor)
    return result.float()


def quantizer(model: nn.Module, linear: str, role: Role) -> Any:
    """ModelOpt's quantizer of a linear's weight or input."""
    return model.get_submodule(f"{linear}.{role}_quantizer")


def _fake_quantize_row_blocks(x: Tensor, _: Any) -> Tensor:
    """1 x 128 blocks along the last axis, FP32 scales: quantized and dequantized."""
    codes, scale = fp8.quantize_row_blocks(x)
    return fp8.dequantize_row_blocks(codes, scale)[..., : x.shape[-1]].to(x.dtype)


def _import_apart() -> None:
    """Import ModelOpt in a thread of its own.

    It keeps an exception of its import, and with it every frame that led there: the model in ours would never be freed.
    """
    with ThreadPoolExecutor(1) as pool:
        pool.submit(import_module, "modelopt.torch.quantization").result()


def _quieten() -> None:
    """Silence two warnings that a user of this program can do nothing about."""
    warnings.filterwarnings("ignore", message="Using a non-tuple sequence", module=r"modelopt\.")
    warnings.filterwarnings("ignore", message="Cannot find transformers package", module=r"modelopt\.")
