"""The words and numbers of the report: verdict, comparison, gates, warnings, provenance. No markup here."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...core.records import Record
from ...runtime.plan_record import PlanRecord
from ...validation.gates import Gate
from ..formats import MISSING, bytes_text, number_text, share_text
from ..tables import failed_first
from .run import RecipeRun, capability_order


@dataclass(frozen=True)
class Verdict:
    """The sentence on top: can this be shipped? `good`: every gate passed; `seen`: every plan ran on its GPU."""

    good: bool
    seen: bool
    headline: str
    plans: str


@dataclass(frozen=True)
class GateGroup:
    """Gates that stand together under one name."""

    name: str
    gates: tuple[Gate, ...]

    @property
    def failed(self) -> int:
        return sum(not gate.passed for gate in self.gates)

    @property
    def passed(self) -> bool:
        """Whether there are gates and all of them passed: a result without gates has not passed."""
        return bool(self.gates) and not self.failed

    @property
    def count(self) -> str:
        return f"{len(self.gates) - self.failed} of {len(self.gates)}"


@dataclass(frozen=True)
class Measure:
    """One row of the comparison: a cell per recipe, in the order of the runs."""

    name: str
    reference: str
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Remark:
    """A warning of calibration, validation or the builder, a finding of the lint, or a stage that the recipe would run again."""

    recipe: str
    source: str
    where: str
    what: str


def gate_groups(runs: Sequence[RecipeRun], extra: Sequence[Gate]) -> list[GateGroup]:
    """Gates by recipe, failed ones first in each; then those on the run as a whole."""
    groups = [GateGroup(run.name, tuple(failed_first(run.gates))) for run in runs]
    return [*groups, GateGroup("whole run", tuple(failed_first(extra)))] if extra else groups


def verdict(runs: Sequence[RecipeRun], groups: Sequence[GateGroup]) -> Verdict:
    """Which recipes pass, and what was never seen on a GPU."""
    bad = [_failure(group) for group in groups if not group.passed]
    engines = " and ".join(sorted({engine for run in runs for engine in run.engines}))
    good = f"{_all_of(len(runs), 'recipe')} passed every gate, run with {engines}."
    plans = [plan for run in runs for plan in run.plans.values() if plan.precision in (None, run.precision)]  # FP16 baselines ship nowhere
    unseen = [plan for plan in plans if not plan.validated]
    if unseen:
        text = f"{len(unseen)} of {len(plans)} plans are not validated on a GPU."
        if any(plan.target == "tensorrt" for plan in unseen):
            text += " Run onerec-trt validate --engine tensorrt before you ship those of TensorRT."
        if any(plan.target == "tensorrt-rtx" for plan in unseen):
            text += " Those of TensorRT-RTX were built without their GPU: what passed is the ONNX file they were made from."
    else:
        text = f"{_all_of(len(plans), 'plan')} {'was' if len(plans) == 1 else 'were'} validated on a GPU."
    return Verdict(good=not bad, seen=bool(plans) and not unseen, headline=f"Do not ship: {'; '.join(bad)}." if bad else good, plans=text)


def comparison(runs: Sequence[RecipeRun]) -> list[Measure]:
    """The measures that decide, recipes side by side."""
    at = "/".join(str(k) for k in sorted({run.validation.beams.k for run in runs}))
    rows: list[tuple[str, str, Callable[[RecipeRun], str]]] = [
        ("gates passed", "every one must hold", lambda r: gate_groups([r], ())[0].count),
        (f"hit@{at}", "requests whose target is among the first", lambda r: share_text(r.validation.beams.hit)),
        (f"hit@{at} of FP32", "the unquantized model, same requests", lambda r: share_text(r.validation.beams.hit_fp32)),
        ("difference", "in points, with its paired 99 % interval", _hit_difference),
        (f"overlap@{at}", "items shared with FP32", lambda r: share_text(r.validation.beams.overlap)),
        ("valid items", "semantic IDs found that are those of items", _valid_items),
        ("top-1 agreement", "first item, outside the tie band", lambda r: share_text(r.validation.beams.top1)),
        ("tie band", "width; requests inside it", _tie_band),
        ("score regret", "FP32 log-probability lost per item", lambda r: _nat(r.validation.beams.score_regret)),
        ("scoring error against FP32", "mean over requests, log-probabilities", lambda r: _nat(r.validation.scoring.engine)),
        (
            "scoring error ratio",
            "to the quantized PyTorch model",
            lambda r: number_text(r.validation.scoring.ratio, ".3f"),
        ),
        ("root KL against FP32", "mean of sqrt(2 KL) over each request's paths", lambda r: _nat(r.validation.scoring.engine_kl)),
        ("root KL ratio", "to the quantized PyTorch model", lambda r: number_text(r.validation.scoring.kl_ratio, ".3f")),
        ("linears in FP8", "of all linears of the model", _quantized),
        *([("kept in FP16", "layers that the recipe names", _kept)] if any(run.quantization.keep_fp16 for run in runs) else []),
        ("weights", "both forms of the graph share them", lambda r: bytes_text(r.description.weight_bytes)),
        *((f"plan, compute capability {c}", "size; GEMMs in FP8, found of expected", _plan_of(c)) for c in _capabilities(runs)),
    ]
    return [Measure(name, reference, tuple(cell(run) for run in runs)) for name, reference, cell in rows]


def remarks(runs: Sequence[RecipeRun]) -> list[Remark]:
    """Warnings, findings and outdated stages of all recipes."""
    found = []
    for run in runs:
        found += [Remark(run.name, "calibration", "", warning) for warning in run.quantization.warnings]
        found += [Remark(run.name, "validation", "", warning) for warning in run.validation.warnings]
        found += [Remark(run.name, "builder", name, warning) for name, plan in run.plans.items() for warning in plan.builder_warnings]
        for finding in run.description.findings:
            hint = f" ({finding.hint})" if finding.hint else ""
            found.append(Remark(run.name, f"lint: {finding.rule}, {finding.severity}", finding.where, finding.what + hint))
        found += [
            Remark(run.name, "recipe", f"{folder}/", f"not what the recipe makes now: another {what}") for folder, what in run.outdated
        ]
    return found


def tools_of(runs: Sequence[RecipeRun]) -> dict[str, str]:
    """Version of every tool; several, if recipes were made with different ones."""
    versions: dict[str, set[str]] = {}
    for record in (record for run in runs for record in run.records.values()):
        for tool, version in record.tools.items():
            versions.setdefault(tool, set()).add(version)
    for plan in (plan for run in runs for plan in run.plans.values()):
        versions.setdefault(f"{plan.target} (library)", set()).add(plan.library_version)
    return {tool: ", ".join(sorted(found)) for tool, found in sorted(versions.items())}


def lineage_of(run: RecipeRun) -> list[tuple[str, Record]]:
    """Records in the order the stages ran, by name of the stage."""
    return [(record.stage, record) for record in run.records.values()]


def facts(context: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Extra facts as pairs of words; mappings inside become `key value` lists."""
    return [(key.replace("_", " "), _fact(value)) for key, value in context.items()]


def _fact(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: MISSING}[value]
    if isinstance(value, float):
        return number_text(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_fact(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_fact, value))
    return str(value)


def _failure(group: GateGroup) -> str:
    if not group.gates:
        return f"{group.name} has no gates"
    return f"{group.name} fails {group.failed} of {len(group.gates)} gates"


def _all_of(count: int, what: str) -> str:
    return f"The {what}" if count == 1 else f"All {count} {what}s"


def _hit_difference(run: RecipeRun) -> str:
    beams = run.validation.beams
    found, low, high = (f"{100 * points:+.2f}" for points in (beams.hit - beams.hit_fp32, *beams.hit_interval))
    return f"{found} [{low}, {high}]"


def _valid_items(run: RecipeRun) -> str:
    validity = run.validation.validity
    return MISSING if validity is None else share_text(validity.share)


def _tie_band(run: RecipeRun) -> str:
    return f"{_nat(run.validation.beams.tie_band)}; {share_text(run.validation.beams.tie_band_share)}"


def _quantized(run: RecipeRun) -> str:
    quantized, others = len(run.quantization.layers), len(run.quantization.unquantized)
    return f"{quantized} of {quantized + others}"


def _kept(run: RecipeRun) -> str:
    return ", ".join(run.quantization.keep_fp16) or MISSING


def _plan_of(capability: str) -> Callable[[RecipeRun], str]:
    def cell(run: RecipeRun) -> str:
        plans = [plan for plan in run.plans.values() if plan.compute_capability == capability]
        return "; ".join(f"{bytes_text(plan.bytes)}; {_fp8_gemms(plan)}" for plan in plans) or MISSING

    return cell


def _fp8_gemms(plan: PlanRecord) -> str:
    found = "?" if plan.fp8_gemms.found is None else str(plan.fp8_gemms.found)
    dequantized = f", {plan.fp8_gemms.dequantized} more with dequantized weights" if plan.fp8_gemms.dequantized else ""
    return f"{found} of {plan.fp8_gemms.expected}{dequantized}"


def _capabilities(runs: Sequence[RecipeRun]) -> list[str]:
    return sorted({plan.compute_capability for run in runs for plan in run.plans.values()}, key=capability_order)


def _nat(value: float) -> str:
    return f"{value:.3g} nat" if math.isfinite(value) else number_text(value)
