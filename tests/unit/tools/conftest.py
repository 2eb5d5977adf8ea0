"""Runs made up for the report: small, but written by the real stages' schemas and records."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from onerec_trt.calibration.statistics import HISTOGRAM_BINS, HISTOGRAM_LOG10_EDGES
from onerec_trt.calibration.summary import (
    Checks,
    ExpertCoverage,
    LayerSummary,
    QuantizationSummary,
    TensorSummary,
    WeightCheck,
    write_summary,
)
from onerec_trt.core.artifacts import sha256, write_json
from onerec_trt.core.precision import PRECISIONS, Granularity
from onerec_trt.core.recipe import parse_recipe
from onerec_trt.core.records import RECORD_NAME
from onerec_trt.core.stages import run_stage
from onerec_trt.export.contracts import scoring_io, serving_io
from onerec_trt.export.lint import Finding
from onerec_trt.export.stage import DESCRIPTION_FILE, Description
from onerec_trt.runtime.plan_record import Fp8Gemms, PlanRecord, WeightBytes, record_path
from onerec_trt.runtime.verdict import GateResult, write_verdict
from onerec_trt.tools.pipeline import stages_of
from onerec_trt.validation.beam_parity import BeamMetrics
from onerec_trt.validation.gates import Gate, gate
from onerec_trt.validation.operator_parity import OperatorResult
from onerec_trt.validation.scoring_parity import ErrorRatios, ScoringErrors
from onerec_trt.validation.serving_parity import ServingErrors
from onerec_trt.validation.validate import VALIDATION_FILE, Validation

RATIOS = ErrorRatios(mean=1.0123, mean_interval=(1.0, 1.02), typical=1.01, typical_interval=(1.0, 1.02))
ROLES = ("self_attention.q", "ffn.experts.0.gate", "ffn.experts.1.gate")


def tensor(name: str, place: int, quantized: bool, score_error: float | None = None) -> TensorSummary:
    middle = 20 + place
    histogram = tuple(int(1000 * math.exp(-((bin - middle) ** 2) / 8)) for bin in range(HISTOGRAM_BINS))
    absmax = 0.25 + 0.125 * place
    snr, cosine = (31.0 - place, 0.999) if quantized else (None, None)
    return TensorSummary(
        name=name,
        quantized=quantized,
        variance=0.01 * (place + 1),
        absmax=absmax,
        absp99=absmax / 2,
        snr_db=snr,
        cosine=cosine,
        score_error=score_error,
        histogram=histogram,
        fp16_ok=True,
    )


def quantization(precision: Any, warnings: tuple[str, ...]) -> QuantizationSummary:
    names = [f"blocks.{block}.{role}" for block in range(2) for role in ROLES]
    quantized = PRECISIONS[precision].is_quantized
    layers = [
        LayerSummary(name=name, kind="linear", granularity=Granularity.ROW, input=name, weight_scale_shape=(8,), input_scale=None)
        for name in names
    ]
    return QuantizationSummary(
        precision=precision,
        layers=tuple(layers) if quantized else (),
        unquantized=("heads.0",) if quantized else ("heads.0", *names),
        experts=(ExpertCoverage(layer="blocks.1.ffn", routed_tokens=(41, 3)),),
        weights=tuple(tensor(f"{name}.weight", place, quantized, 0.001 * (place + 1)) for place, name in enumerate(names)),
        activations=tuple(tensor(f"{name}.input", place, quantized) for place, name in enumerate(names)),
        histogram_log10_edges=HISTOGRAM_LOG10_EDGES,
        warnings=warnings,
        checks=Checks(
            reference="modelopt", modelopt_scoring_error=0.01, requests=8, weights=WeightCheck(linears=6, codes=100, differing_codes=1)
        ),
    )


def good_gates(recipe: str) -> list[Gate]:
    return [
        gate("weights in the file", recipe, 0, "<=", 0, "6 tensors compared"),
        gate("operator Fp8Linear", recipe, 2e-6, "<=", 1e-4, "worst of 6"),
        gate("scoring log-probabilities", recipe, 1.0123, "<=", 1.1),
        gate("overlap@10", recipe, 0.9375, ">=", 0.90),
    ]


def validation(recipe: str, precision: str, gates: list[Gate]) -> Validation:
    labels = ("context.linear", "step0.blocks.0.self.q", "step0.blocks.1.ffn.experts", "step2.head")
    return Validation(
        recipe=recipe,
        precision=precision,
        engine="onnxruntime",
        requests=321,
        gates=gates,
        beams=BeamMetrics(
            k=10,
            overlap=0.9375,
            width=32,
            overlap_W=0.925,
            order=0.985,
            top1=0.9875,
            tie_band=0.0125,
            tie_band_share=0.0875,
            score_regret=0.00321,
            score_regret_W=0.00432,
            hit=0.4375,
            hit_fp32=0.4425,
            hit_interval=(-0.0125, 0.0025),
        ),
        scoring=ScoringErrors(engine=0.020246, quantized=0.02, engine_kl=0.00151, quantized_kl=0.0015, ratios=RATIOS, kl_ratios=RATIOS),
        serving=ServingErrors(malformed=0, score_error=1e-6, mean_score_error=3e-7, left_out=0, noise=1.5, mean_noise=0.02),
        fp16_noise=0.001,
        operators=[
            OperatorResult(label=name, operator="Fp8Linear", difference=difference, threshold=1e-4, passed=True)
            for name, difference in zip(labels, (0.0, 2e-6, 1e-6, 3e-7), strict=True)
        ],
    )


def plan_record(plan: Path, capability: str, exported: Path) -> PlanRecord:
    return PlanRecord(
        plan=plan.name,
        sha256=sha256(plan),
        bytes=plan.stat().st_size,
        target="tensorrt-rtx",
        library_version="1.7.1.116",
        compute_capability=capability,
        driver=None,
        gpu=None,
        io=serving_io(64, 8),
        profiles=({"features": ((1, 2, 64), (4, 16, 64), (8, 32, 64)), "lengths": ((1, 3), (4, 3), (8, 3))},),
        builder_flags=(),
        fp8_gemms=Fp8Gemms(expected=18, found=18, missing=(), dequantized=0, how="counted"),
        weight_bytes=WeightBytes(graph={"fp8": 4096, "other": 1024, "with_fp16_instead": 9216}, plan=None),
        build_seconds=0.5,
        peak_memory_bytes=1,
        made_from={RECORD_NAME: sha256(exported / RECORD_NAME)},
    )


def write_calibrated(folder: Path, precision: str, warnings: tuple[str, ...]) -> dict[str, Any]:
    write_summary(folder, quantization(precision, warnings))
    return {}


def write_exported(folder: Path, findings: tuple[Finding, ...], weight_bytes: int = 5120) -> dict[str, Any]:
    description = Description(
        widths=[8, 8, 8],
        paths=8,
        feature_width=64,
        quantized_gemms=18,
        weight_bytes=weight_bytes,
        nodes={},
        findings=list(findings),
        io={"model.onnx": serving_io(64, 8), "scoring.onnx": scoring_io(64, 8)},
    )
    write_json(folder / DESCRIPTION_FILE, description.model_dump(mode="json"))
    return {}


def write_plans(folder: Path, exported: Path) -> dict[str, Any]:
    for capability in ("8.9", "12.0"):
        plan = folder / f"sm{capability.replace('.', '')}.plan"
        plan.write_bytes(f"{capability:4}".encode() * 3000)
        write_json(record_path(plan), plan_record(plan, capability, exported).model_dump(mode="json"))
    return {}


def write_validated(folder: Path, found: Validation, of: tuple[Path, ...]) -> dict[str, Any]:
    judged = {each.name: sha256(each / RECORD_NAME) for each in of}
    write_json(folder / VALIDATION_FILE, found.model_copy(update={"judged": judged}).model_dump(mode="json"))
    return {}


def write_verdicts(plans: Path, gates: list[Gate]) -> None:
    kept = set(GateResult.model_fields)
    results = tuple(GateResult.model_validate(each.model_dump(include=kept)) for each in gates)
    for plan in plans.glob("*.plan"):
        write_verdict(plan, results, (0,), {})


def write_run(
    root: Path,
    name: str,
    *,
    precision: str = "fp8-row",
    gates: list[Gate] | None = None,
    warnings: tuple[str, ...] = (),
    findings: tuple[Finding, ...] = (),
    validated: bool = False,
    on_gpu: list[Gate] | None = None,
    change_exported: bool = False,
) -> Path:
    """A folder with the four stages of one recipe, which lies beside it; inputs, options and code are those of the real stages.

    `validated`: beside the plans lie verdicts of a pass on a GPU.
    `on_gpu`: gates of a validation of the plans on their GPU, which is there then.
    `change_exported`: exports once more after validation, with another result.
    """
    root.mkdir(parents=True)
    source = root / "source"
    source.write_text("checkpoint")
    (root.parent / "reference").mkdir(exist_ok=True)
    paths = {name: str(source) for name in ("checkpoint", "requests", "heldout")}
    values = {"name": root.name, "precision": precision, "output": str(root.parent), **paths}
    write_json(root.with_suffix(".yaml"), values)
    stages = {stage.name: stage for stage in stages_of(parse_recipe(values))}

    found = validation(name, precision, good_gates(name) if gates is None else gates)
    export = partial(write_exported, findings=findings)
    run_stage(replace(stages["calibrate"], body=partial(write_calibrated, precision=precision, warnings=warnings)))
    run_stage(replace(stages["export"], body=export))
    run_stage(replace(stages["build"], body=partial(write_plans, exported=stages["export"].folder)))
    write = partial(write_validated, of=(stages["calibrate"].folder, stages["export"].folder))
    run_stage(replace(stages["validate"], body=partial(write, found=found), check=None, needs=()))
    if validated or on_gpu is not None:
        write_verdicts(root / "plans", on_gpu or good_gates(name))
    if on_gpu is not None:
        plans = {path.name: sha256(path) for path in (root / "plans").glob("*.plan")}
        found = validation(name, precision, on_gpu).model_copy(update={"engine": "tensorrt", "plans": plans})
        body, inputs = partial(write, found=found), stages["validate"].inputs
        run_stage(replace(stages["validate-tensorrt"], body=body, inputs=inputs, machine=None, check=None, needs=(), after=None))
    if change_exported:
        run_stage(replace(stages["export"], options={"again": True}, body=partial(export, weight_bytes=1)))
    return root


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Writes a run into a folder of its own, whatever the recipe's name holds."""
    made = iter(range(100))
    return lambda name, **options: write_run(tmp_path / f"run{next(made)}", name, **options)
