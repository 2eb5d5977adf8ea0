"""Measurements of trained references as one JSON file, and the page of the docs that shows it: tables, and plots as SVG."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ...core.artifacts import read_json, write_json, write_text
from ...core.errors import ArtifactError, first_problem
from ...fidelity.distributions import PARTS
from ...fidelity.reference_measurement import Layers, ReferenceMeasurement
from ...fidelity.sensitivity import UnitError
from ...fidelity.stress_measurement import SCALES, Stress
from ...fidelity.table import Cell, FidelityTable, Row
from .svg import Bars, write_bars

PAGE, IMAGES = "fidelity.md", "images"
_DIGEST = 16  # digits shown


def read_measurement(path: Path) -> ReferenceMeasurement:
    """What `dev measure-reference` wrote.

    Raises:
        ArtifactError: It is missing or of another version.
    """
    try:
        return ReferenceMeasurement.model_validate(read_json(path))
    except ValidationError as error:
        raise ArtifactError(f"malformed: {first_problem(error)}", where=str(path), hint="measure the reference again") from None


def write_results(measurements: Sequence[ReferenceMeasurement], folder: Path) -> list[Path]:
    """Write `fidelity.json`, `fidelity.md` and its plots into a folder; what was written.

    Raises:
        ArtifactError: The disk is full or the folder cannot be written.
    """
    data: dict[str, Any] = {"references": [measured.model_dump(mode="json") for measured in measurements]}
    written = [folder / "fidelity.json", folder / PAGE]
    write_json(written[0], data)
    write_text(written[1], "\n".join(_page(measurements)) + "\n")
    for measured in measurements:
        name = measured.table.model
        plots = {"spread": _spread(measured)}
        if measured.layers is not None:
            plots["kinds"] = _kinds(name, measured.layers)
        for slug, bars in plots.items():
            written.append(folder / IMAGES / f"fidelity-{slug}-{name}.svg")
            write_bars(bars, written[-1])
    return written


def _page(measurements: Sequence[ReferenceMeasurement]) -> Iterator[str]:
    yield "# Fidelity of the trained references"
    yield ""
    yield "Written by `onerec-trt dev reference-results` from [fidelity.json](fidelity.json); words: [fidelity](../fidelity.md)."
    for measured in measurements:
        yield ""
        yield from _reference(measured)


def _reference(measured: ReferenceMeasurement) -> Iterator[str]:
    training, table = measured.training, measured.table
    yield f"## {table.model}"
    yield (
        f"{training['parameters'] / 1e6:.0f} million parameters, {training['steps']} steps of {training['batch_size']} users on "
        f"{training['device']} in {training['seconds'] / 60:.1f} minutes; loss {training['losses'][-1]:.3f} nat"
        f"{', flat' if training['flat'] else ''}, held-out {training['heldout_loss']:.3f}. "
        f"Seed {training['seed']}, checkpoint `{training['checkpoint_sha256'][:_DIGEST]}`."
    )
    missed = [gate for gate in measured.bars if not gate.passed]
    yield ""
    yield f"{len(measured.bars) - len(missed)} of {len(measured.bars)} bars are reached."
    yield from (f"- {gate.recipe}: {gate.sentence()}" for gate in missed)
    yield ""
    yield f"{table.requests} requests, {table.width} items each, packed models in PyTorch on {measured.device}:"
    yield ""
    yield from _fidelity(table)
    yield ""
    if measured.layers is not None:
        yield from _sensitivity(table.model, measured.layers)
        yield ""
    if measured.stress is not None:
        yield from _stress(measured.stress)
        yield ""
    yield from _distributions(measured)


def _fidelity(table: FidelityTable) -> Iterator[str]:
    """Metrics as rows, systems as columns; below a value its interval."""
    heads = [row.system if row.beside == "FP32" else f"{row.system} beside {row.beside}" for row in table.rows]
    yield f"| metric | FP32 | {' | '.join(heads)} |"
    yield "| --- |" + " --- |" * (len(heads) + 1)
    for metric in dict.fromkeys(cell.metric for row in table.rows for cell in row.cells):
        cells = [_cell(row, metric) for row in table.rows]
        fp32 = next((cell.fp32 for cell in cells if cell is not None and cell.fp32 is not None), None)
        yield f"| {metric} | {'' if fp32 is None else f'{fp32:.4f}'} | {' | '.join(map(_cell_text, cells))} |"


def _cell(row: Row, metric: str) -> Cell | None:
    return next((cell for cell in row.cells if cell.metric == metric), None)


def _cell_text(cell: Cell | None) -> str:
    if cell is None:
        return "—"
    low, high = cell.interval
    return f"{cell.value:.4g} [{low:.3g}, {high:.3g}]"


def _sensitivity(model: str, layers: Layers) -> Iterator[str]:
    yield "Score error in nat with one kind of layer quantized:"
    yield ""
    columns = [unit.unit for unit in layers.sensitivity[0].kinds]  # in one order for every precision
    yield f"| precision | all | {' | '.join(columns)} | half of it by keeping in FP16 | products take |"
    yield "| --- |" + " --- |" * (len(columns) + 3)
    for found, mixed in zip(layers.sensitivity, layers.mixed, strict=True):
        errors = {unit.unit: unit.error for unit in found.kinds}
        kinds = " | ".join(f"{errors[kind]:.4f}" for kind in columns)
        kept = f"{len(mixed.kept)} of {len(found.layers)} layers: {', '.join(mixed.kept[:4])}{' ...' if len(mixed.kept) > 4 else ''}"
        yield f"| {found.precision} | {found.all_at_once:.4f} | {kinds} | {kept} | x {mixed.slower:.2f} |"
    yield ""
    yield f"![Score error by kind of layer]({IMAGES}/fidelity-kinds-{model}.svg)"


def _stress(stress: Stress) -> Iterator[str]:
    rows = stress.rows
    yield f"Outliers planted into `{rows[0].tensor}`, score error in nat with its product quantized:"
    yield ""
    scales = list(SCALES)
    yield f"| outlier | factor | {' | '.join(scales)} | verdict |"
    yield "| --- |" + " --- |" * (len(scales) + 2)
    for row in rows:
        errors = " | ".join(f"{row.errors[scale]:.5f}" for scale in scales)
        yield f"| {row.outlier} | {row.factor:g} | {errors} | {row.judgement.verdict.value}: {row.judgement.reason} |"
    if stress.expert is not None:
        expert = stress.expert
        yield ""
        yield f"Expert {expert.expert} of `{expert.layer}` kept from every token: the analysis names {', '.join(map(str, expert.named))}."


def _distributions(measured: ReferenceMeasurement) -> Iterator[str]:
    yield "Averages over tensors:"
    yield ""
    yield "| model | part | tensors | variance | AbsMax | AbsP99 | verdicts |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for found in (measured.analysis.model, measured.analysis.ranking):
        for part in PARTS:
            mean = found.averages[part]
            verdicts = ", ".join(f"{count} {verdict}" for verdict, count in found.verdicts[part].items())
            yield f"| {found.model} | {part}s | {mean.tensors} | {mean.variance:.3g} | {mean.absmax:.3g} | {mean.absp99:.3g} | {verdicts} |"
    yield ""
    yield f"![Variance by kind of tensor, beside the ranking model]({IMAGES}/fidelity-spread-{measured.table.model}.svg)"


def _kinds(model: str, layers: Layers) -> Bars:
    found = layers.sensitivity[-1]
    units: Sequence[UnitError] = found.kinds
    rows = [("all at once", found.all_at_once), *((unit.unit, unit.error) for unit in units)]
    return Bars(f"{model}, {found.precision}: score error in nat, one kind of layer quantized", rows)


def _spread(measured: ReferenceMeasurement) -> Bars:
    """Variances by kind on one logarithmic axis, the ranking model's below."""
    kinds = measured.analysis.model.kinds
    rows = [(f"{kind}, {part}", mean.variance) for part in PARTS for kind, mean in kinds[part].items()]
    rows += [(f"ranking model, {part}", measured.analysis.ranking.averages[part].variance) for part in PARTS]
    return Bars(f"{measured.table.model}: variance, logarithmic", rows)
