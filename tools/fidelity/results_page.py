"""Measurements of trained references as one JSON file, and the page of the docs that shows it: tables, and plots as SVG."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ...core.artifacts import read_json, write_json, write_text
from ...core.errors import ArtifactError, first_problem
from ...fidelity.analysis import PUBLISHED
from ...fidelity.distributions import PARTS
from ...fidelity.reference_measurement import Analyzed, Layers, ReferenceMeasurement
from ...fidelity.reference_training import late_fall
from ...fidelity.sensitivity import UnitError
from ...fidelity.stress_measurement import SCALES, Stress
from ...fidelity.table import Cell, FidelityTable, Row
from ...validation.gates import Gate
from ..outputs import require_own_json
from .svg import Bars, write_bars

JSON_FILE, PAGE, IMAGES = "fidelity.json", "fidelity.md", "images"
_HEADING = "# Fidelity of the trained references"
_DIGEST = 16  # digits shown


def require_own_results(folder: Path) -> None:
    """Check that results would replace nothing but other results.

    Raises:
        ArtifactError: Something else lies there.
    """
    require_own_json(folder / JSON_FILE, ("references",))
    page = folder / PAGE
    if page.exists() and not (page.is_file() and page.read_bytes().startswith(_HEADING.encode())):
        hint = "move it away, or choose another folder; nothing was changed"
        raise ArtifactError("the command would replace a file that is not its own", where=str(page), hint=hint)


def read_results(folder: Path) -> list[ReferenceMeasurement]:
    """The references in a folder of results, none where it holds none.

    Raises:
        ArtifactError: They are malformed.
    """
    path = folder / JSON_FILE
    try:
        return [ReferenceMeasurement.model_validate(each) for each in read_json(path)["references"]] if path.exists() else []
    except ValidationError as error:
        raise ArtifactError(f"malformed: {first_problem(error)}", where=str(path), hint="move it away and measure again") from None


def merged(found: ReferenceMeasurement, folder: Path) -> list[ReferenceMeasurement]:
    """The results of a folder with those of one reference in the place of its earlier ones.

    Raises:
        ArtifactError: Those in the folder are malformed.
    """
    results = read_results(folder)
    places = [place for place, other in enumerate(results) if _identity(other) == _identity(found)]
    if not places:
        return [*results, found]
    results[places[0]] = found
    return results


def _identity(measured: ReferenceMeasurement) -> tuple[str, int]:
    return measured.training["reference"], measured.training["seed"]


def write_results(measurements: Sequence[ReferenceMeasurement], folder: Path) -> list[Path]:
    """Write `fidelity.json`, `fidelity.md` and its plots into a folder; what was written.

    Raises:
        ArtifactError: The disk is full or the folder cannot be written.
    """
    data: dict[str, Any] = {"references": [measured.model_dump(mode="json") for measured in measurements]}
    written = [folder / JSON_FILE, folder / PAGE]
    write_json(written[0], data)
    write_text(written[1], "\n".join(_page(measurements)) + "\n")
    for measured in measurements:
        name = measured.training["reference"]
        plots = {}
        if measured.analysis is not None:
            plots["spread"] = _spread(name, measured.analysis)
        if measured.layers is not None:
            plots["kinds"] = _kinds(name, measured.layers)
        for slug, bars in plots.items():
            written.append(folder / IMAGES / f"fidelity-{slug}-{name}.svg")
            write_bars(bars, written[-1])
    return written


def _page(measurements: Sequence[ReferenceMeasurement]) -> Iterator[str]:
    yield _HEADING
    yield ""
    yield "Written by `onerec-trt dev reference` from [fidelity.json](fidelity.json); words: [fidelity](../fidelity.md)."
    for measured in measurements:
        yield ""
        yield from _reference(measured)


def _reference(measured: ReferenceMeasurement) -> Iterator[str]:
    name = measured.training["reference"]
    yield f"## {name}"
    yield from _training(measured.training)
    if measured.keep_fp16:
        yield f"FP8 recipes keep {', '.join(f'`{pattern}`' for pattern in measured.keep_fp16)} in FP16."
        yield ""
    if measured.table is not None:
        yield from _bars(measured.bars)
        yield from _fidelity(measured.table, f"packed models in PyTorch on {measured.device}")
    if measured.engine_table is not None:
        yield from _bars(measured.engine_bars)
        yield from _fidelity(measured.engine_table, f"recipes with {measured.engine_table.engine}")
    if measured.layers is not None:
        yield from _sensitivity(name, measured.layers)
    if measured.mixed is not None:
        yield from _fidelity(measured.mixed, "the mixed recipe")
    if measured.stress is not None:
        yield from _stress(measured.stress)
    if measured.analysis is not None:
        yield from _distributions(name, measured.analysis)


def _bars(bars: Sequence[Gate]) -> Iterator[str]:
    """How many are reached, and those that are not."""
    missed = [gate for gate in bars if not gate.passed]
    yield f"{len(bars) - len(missed)} of {len(bars)} bars are reached."
    yield from (f"- {gate.recipe}: {gate.sentence()}" for gate in missed)
    yield ""


def _training(training: dict[str, Any]) -> Iterator[str]:
    yield (
        f"{training['parameters'] / 1e6:.0f} million parameters, {training['steps']} of {training['of_steps']} steps of "
        f"{training['batch_size']} users on {training['device']} in {training['seconds'] / 60:.1f} minutes. Seed {training['seed']}."
    )
    if training["finished"]:
        losses = training["losses"]
        yield (
            f"Loss {losses[-1]:.3f} nat, held-out {training['heldout_loss']:.3f}; over the last tenth of the steps it fell by "
            f"{late_fall(losses):.2%}{', it is flat' if training['flat'] else ''}. "
            f"Checkpoint `{training['checkpoint_sha256'][:_DIGEST]}`."
        )
    yield ""


def _fidelity(table: FidelityTable, what: str) -> Iterator[str]:
    """Metrics as rows, systems as columns; behind a value its interval."""
    yield f"{table.requests} requests, {table.width} items each, {what}:"
    yield ""
    heads = [row.system if row.beside == "FP32" else f"{row.system} beside {row.beside}" for row in table.rows]
    yield f"| metric | FP32 | {' | '.join(heads)} |"
    yield "| --- |" + " --- |" * (len(heads) + 1)
    for metric in dict.fromkeys(cell.metric for row in table.rows for cell in row.cells):
        cells = [_cell(row, metric) for row in table.rows]
        fp32 = next((cell.fp32 for cell in cells if cell is not None and cell.fp32 is not None), None)
        yield f"| {metric} | {'' if fp32 is None else f'{fp32:.4f}'} | {' | '.join(map(_cell_text, cells))} |"
    yield ""


def _cell(row: Row, metric: str) -> Cell | None:
    return next((cell for cell in row.cells if cell.metric == metric), None)


def _cell_text(cell: Cell | None) -> str:
    if cell is None:
        return "—"
    low, high = cell.interval
    return f"{cell.value:.4g} [{low:.3g}, {high:.3g}]"


def _sensitivity(model: str, layers: Layers) -> Iterator[str]:
    yield "Score error in nat with everything quantized, and with one kind of layer:"
    yield ""
    columns = list(dict.fromkeys(unit.unit for found in layers.sensitivity for unit in found.kinds))  # in one order for every precision
    yield f"| precision | all | {' | '.join(columns)} | half of it by keeping in FP16 | products take |"
    yield "| --- |" + " --- |" * (len(columns) + 3)
    for found, mixed in zip(layers.sensitivity, layers.mixed, strict=True):
        errors = {unit.unit: unit.error for unit in found.kinds}
        kinds = " | ".join(f"{errors[kind]:.4f}" if kind in errors else "—" for kind in columns)
        kept = f"{len(mixed.kept)} of {len(found.layers)} layers: {', '.join(mixed.kept[:4])}{' ...' if len(mixed.kept) > 4 else ''}"
        yield f"| {found.precision} | {found.all_at_once:.4f} | {kinds} | {kept} | x {mixed.slower:.2f} |"
    yield ""
    yield f"![Score error by kind of layer]({IMAGES}/fidelity-kinds-{model}.svg)"
    yield ""


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
    yield ""
    if stress.expert is not None:
        expert = stress.expert
        yield f"Expert {expert.expert} of `{expert.layer}` kept from every token: the analysis names {', '.join(map(str, expert.named))}."
        yield ""


def _distributions(model: str, analysis: Analyzed) -> Iterator[str]:
    yield "Averages over tensors:"
    yield ""
    yield "| model | part | tensors | variance | AbsMax | AbsP99 | verdicts |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for found in (analysis.model, analysis.ranking):
        for part in PARTS:
            mean = found.averages[part]
            verdicts = ", ".join(f"{count} {verdict}" for verdict, count in found.verdicts[part].items())
            yield f"| {found.model} | {part}s | {mean.tensors} | {mean.variance:.3g} | {mean.absmax:.3g} | {mean.absp99:.3g} | {verdicts} |"
    for known in PUBLISHED:
        yield f"| {known.model}, published | {known.part}s | | {known.variance or ''} | {known.absmax or ''} | | |"
    yield ""
    yield f"![Variance by kind of tensor, beside the ranking model]({IMAGES}/fidelity-spread-{model}.svg)"


def _kinds(model: str, layers: Layers) -> Bars:
    found = layers.sensitivity[-1]
    units: Sequence[UnitError] = found.kinds
    rows = [("all at once", found.all_at_once), *((unit.unit, unit.error) for unit in units)]
    return Bars(f"{model}, {found.precision}: score error in nat, one kind of layer quantized", rows)


def _spread(model: str, analysis: Analyzed) -> Bars:
    """Variances by kind on one logarithmic axis, the ranking model's below."""
    kinds = analysis.model.kinds
    rows = [(f"{kind}, {part}", mean.variance) for part in PARTS for kind, mean in kinds[part].items()]
    rows += [(f"ranking model, {part}", analysis.ranking.averages[part].variance) for part in PARTS]
    return Bars(f"{model}: variance, logarithmic", rows)
