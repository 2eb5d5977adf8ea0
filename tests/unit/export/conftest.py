"""Small random models, packed by the real calibration code, their exported graphs, and requests for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
import torch
from onerec_trt.calibration.quantize import Amax, quantize, share_input_amax, weight_amax
from onerec_trt.calibration.targets import Target, quantized_targets
from onerec_trt.core.precision import PRECISIONS, Granularity, Precision
from onerec_trt.core.recipe import ExportOptions
from onerec_trt.export.serving import Decoder, ScoringModel, ServingModel
from onerec_trt.export.stage import SCORING_FILE, SERVING_FILE, Description, write_graphs
from onerec_trt.models.config import OneRecConfig, parse_config
from onerec_trt.models.onerec import MixtureOfExperts, OneRec
from onerec_trt.operators import fp8
from onerec_trt.runtime.onnxruntime_runner import OnnxRuntimeRunner
from safetensors.torch import load_file
from torch import Tensor, nn

BEAM = (4, 8, 16)
CONFIG = parse_config(
    {
        "d_model": 160,
        "n_layers": 2,
        "n_heads": 5,
        "d_head": 32,
        "embed_dim": 9,
        "codebook": 64,
        "ffn_hidden": 192,
        "l_kv": 2,
        "s_kv": 2,
        "g_kv": 1,
        "moe": {"experts": 4, "top_k": 2, "hidden": 96, "dense_layers": 1},
    }
)


class Batch(NamedTuple):
    """Features FP16 [B, S, F] with zero padding, lengths INT64 [B, 3]."""

    features: Tensor
    lengths: Tensor

    @property
    def arrays(self) -> dict[str, Any]:
        return {"features": self.features.numpy(), "lengths": self.lengths.numpy()}


def random_batch(config: OneRecConfig, lengths: list[list[int]], seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    counts = torch.tensor(lengths)
    tokens = max(int(counts.sum(1).max()), 1)
    features = torch.randn(len(lengths), tokens, config.feature_width, generator=generator).half()
    valid = torch.arange(tokens) < counts.sum(1, keepdim=True)
    return Batch(torch.where(valid[..., None], features, 0), counts)


def random_model(config: OneRecConfig, seed: int = 0) -> OneRec:
    """A model whose layers keep variances, with norms other than one, and every value an FP16 number."""
    generator = torch.Generator().manual_seed(seed)
    model = OneRec(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.uniform_(0.5, 1.5, generator=generator)
            else:
                parameter.normal_(std=1.0 if "embedding" in name else parameter.shape[1] ** -0.5, generator=generator)
            parameter.copy_(parameter.half())
        for module in model.modules():
            if isinstance(module, MixtureOfExperts):
                module.selection_bias.normal_(std=0.1, generator=generator)
    return model


class ModelWeights:
    """A model as the quantizing code reads it."""

    def __init__(self, model: OneRec) -> None:
        self.config, self._tensors = model.config, model.state_dict()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._tensors)

    def tensor(self, name: str) -> Tensor:
        return self._tensors[name].float()


@dataclass(frozen=True)
class Packed:
    """A packed checkpoint in memory, as the export reads it, with the values its weights stand for."""

    config: OneRecConfig
    scheme: Precision
    targets: list[Target]
    stored: Mapping[str, Tensor]
    values: Mapping[str, Tensor]

    def tensor(self, name: str, /) -> Tensor:
        return self.stored[name]


def observed_amax(model: OneRec, targets: list[Target]) -> dict[str, Amax]:
    """AbsMax of every target's weight and input over a few requests; every expert sees every token."""
    seen: dict[str, float] = {}
    modules = dict(model.named_modules())

    def observe(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen[name] = max(seen.get(name, 0.0), float(inputs[0].abs().max()))

        return hook

    hooks = [modules[target.name].register_forward_pre_hook(observe(target.name)) for target in targets]
    experts = [module for module in model.modules() if isinstance(module, MixtureOfExperts)]
    for module in experts:
        module.calibrating = True
    batch = random_batch(model.config, [[2, 3, 4]] * 4, seed=1)
    with torch.no_grad():
        model(batch.features.float(), batch.lengths, torch.randint(0, model.config.codebook, (4, 8, 2)))
    for module in experts:
        module.calibrating = False
    for hook in hooks:
        hook.remove()
    amax = {target.name: Amax(weight_amax(modules[target.name].weight, target.granularity), seen[target.name]) for target in targets}
    return share_input_amax(targets, amax)


def quantize_model(model: OneRec, precision: str, folder: Path) -> Packed:
    targets = quantized_targets(model.config, precision)
    amax = observed_amax(model, targets)
    values: dict[str, Tensor] = {}

    def on_weight(name: str, tensor: Tensor, packed: Any) -> None:
        values[name] = tensor if packed is None else packed.dequantized()

    folder.mkdir(parents=True)
    quantize(ModelWeights(model), targets, lambda target, _: amax[target.name], folder, on_weight)
    stored = {name: tensor for shard in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(shard).items()}
    return Packed(model.config, PRECISIONS[precision], targets, stored, values)


def fake_quantized(model: OneRec, packed: Packed) -> OneRec:
    """The model with dequantized weights, whose quantized linears round their inputs to E4M3 first; everything else in FP32."""
    copy = OneRec(model.config).eval()
    copy.load_state_dict(dict(packed.values))
    modules = dict(copy.named_modules())
    for target in packed.targets:
        scale = packed.stored.get(f"{target.name}.input_scale")
        modules[target.name].register_forward_pre_hook(lambda _m, inputs, g=target.granularity, s=scale: (_rounded(inputs[0], g, s),))
    return copy


def _rounded(x: Tensor, granularity: Granularity, scale: Tensor | None) -> Tensor:
    if granularity is Granularity.TENSOR:
        assert scale is not None
        return fp8.quantize_tensor(x, scale).float() * scale
    if granularity is Granularity.ROW:
        codes, row_scale = fp8.quantize_rows(x)
        return codes.float() * row_scale
    return fp8.dequantize_row_blocks(*fp8.quantize_row_blocks(x))[..., : x.shape[-1]]


@dataclass(frozen=True, eq=False)
class Exported:
    """One exported folder with everything it was made from."""

    folder: Path
    model: OneRec
    packed: Packed
    description: Description
    serving: ServingModel
    scoring: ScoringModel

    def proto(self, name: str = SERVING_FILE) -> onnx.ModelProto:
        """A fresh copy of a graph, without its external data."""
        return onnx.load(self.folder / name, load_external_data=False)

    def run(self, batch: Batch) -> tuple[Any, Any]:
        """Semantic IDs and scores from ONNX Runtime."""
        outputs = self._runner(SERVING_FILE)(batch.arrays)
        return outputs["sids"], outputs["scores"]

    def run_scoring(self, batch: Batch, sids: Any) -> Any:
        """Log-probabilities from ONNX Runtime."""
        return self._runner(SCORING_FILE)(batch.arrays | {"sids": np.asarray(sids)})["log_probabilities"]

    @cache  # noqa: B019 (lives as long as the test session)
    def _runner(self, name: str) -> OnnxRuntimeRunner:
        return OnnxRuntimeRunner(self.folder / name, threads=1)


@pytest.fixture(autouse=True)
def _deterministic() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def config() -> OneRecConfig:
    return CONFIG


@pytest.fixture(scope="session")
def make_model() -> Callable[..., OneRec]:
    return random_model


@pytest.fixture(scope="session")
def make_batch() -> Callable[..., Batch]:
    return random_batch


@pytest.fixture(scope="session")
def make_fake_quantized() -> Callable[[OneRec, Packed], OneRec]:
    return fake_quantized


@pytest.fixture(scope="session")
def make_packed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[OneRec, str], Packed]:
    return lambda model, precision: quantize_model(model, precision, tmp_path_factory.mktemp("packed") / precision)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, make_packed: Callable[[OneRec, str], Packed]) -> Callable[[str], Exported]:
    """The export of one small mixture-of-experts model in a precision, made once."""
    done: dict[str, Exported] = {}

    def export(precision: str) -> Exported:
        if precision not in done:
            folder = tmp_path_factory.mktemp(f"exported-{precision}")
            model = random_model(CONFIG)
            model.blocks[1].self_attention.o.weight = model.blocks[0].self_attention.o.weight  # equal, yet two weights
            packed = make_packed(model, precision)
            description = write_graphs(packed, ExportOptions(beam=BEAM), folder)
            serving = ServingModel(packed, BEAM).eval()
            done[precision] = Exported(folder, model, packed, description, serving, ScoringModel(Decoder(packed), BEAM[-1]).eval())
        return done[precision]

    return export
