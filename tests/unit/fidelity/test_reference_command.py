"""`dev reference`: from nothing to results at toy size, in parts; the page, what stays of other references, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from onerec_trt.calibration.targets import quantized_targets
from onerec_trt.core.artifacts import read_json, write_json
from onerec_trt.core.errors import ArtifactError, GateError, MissingExtraError
from onerec_trt.core.recipe import Recipe, load_recipe
from onerec_trt.core.records import tool_version
from onerec_trt.fidelity.reference_measurement import ReferenceMeasurement
from onerec_trt.fidelity.references import REFERENCES
from onerec_trt.fidelity.table import FidelityTable
from onerec_trt.tools.fidelity import reference_command
from onerec_trt.tools.fidelity.reference_command import ReferenceOptions, run_reference, unfinished
from onerec_trt.tools.fidelity.reference_recipes import PRECISIONS
from onerec_trt.tools.fidelity.results_page import merged, read_results, write_results
from onerec_trt.tools.fidelity.svg import Bars, bars_svg
from onerec_trt.validation.gates import gate

from .conftest import SEED, SIZE, Trained

DOCS = Path(__file__).parents[3] / "docs" / "measurements"


@pytest.fixture
def options(trained: Trained, tmp_path: Path) -> ReferenceOptions:
    """Those of the shared reference, whose training is done and whose parts another test may have measured."""
    cpu = torch.device("cpu")
    return ReferenceOptions(SIZE, SEED, None, None, trained.root, tmp_path / "results", 9.0, 24, 8, cpu)


def whole(options: ReferenceOptions) -> ReferenceMeasurement:
    """All of it; bars of a toy mean nothing."""
    with suppress(GateError):
        run_reference(options)
    (found,) = read_results(options.out)
    return found


def test_the_page_and_the_file_say_the_same(options: ReferenceOptions) -> None:
    found = whole(options)
    assert unfinished(found) == []
    assert found.table is not None
    page = (options.out / "fidelity.md").read_text()
    overlap = found.table.rows[1].cell("overlap@16")
    assert f"{overlap.value:.4g} [" in page
    assert found.training["checkpoint_sha256"][:16] in page
    assert found.stress is not None
    assert found.stress.expert is not None
    assert "FP8 recipes keep `blocks.0.cross.*`, `blocks.0.self.*` in FP16." in page
    assert f"Expert {found.stress.expert.expert} of `{found.stress.expert.layer}`" in page
    images = [f"images/fidelity-{slug}-{SIZE}.svg" for slug in ("kinds", "spread")]
    assert all((options.out / link).is_file() and link in page for link in images)


def test_training_that_is_not_done_gives_a_result_and_the_next_call_goes_on(options: ReferenceOptions, tmp_path: Path) -> None:
    first = replace(options, state=tmp_path / "state", minutes=0.0, size="toy")
    run_reference(first)
    (found,) = read_results(options.out)
    assert (found.training["steps"], found.table, unfinished(found)) == (0, None, ["training", "measurement"])
    assert "0 of 12 steps" in (options.out / "fidelity.md").read_text()


def test_results_of_other_references_stay(options: ReferenceOptions) -> None:
    found = whole(options)
    other = found.model_copy(update={"training": found.training | {"reference": "other"}})
    write_results([other, *read_results(options.out)], options.out)
    changed = found.model_copy(update={"device": "another"})
    assert merged(changed, options.out) == [other, changed]


def test_a_missed_bar_ends_the_command_after_the_results_are_written(
    options: ReferenceOptions, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = whole(options)
    gate = found.bars[0].model_copy(update={"value": 2.0, "passed": False})
    monkeypatch.setattr(reference_command, "measure_reference", lambda _: iter([found.model_copy(update={"bars": (gate,)})]))
    with pytest.raises(GateError, match="1 of 1 gates failed"):
        run_reference(options)
    assert read_results(options.out)[0].bars == (gate,)
    assert "fp8-row-block" in capsys.readouterr().out


class FakeTables:
    """What an engine answered before, and what it gives when there is time."""

    def __init__(self, before: list[FidelityTable], now: list[FidelityTable]) -> None:
        self.before, self.now = before, now
        self.asked: list[tuple[list[str], str, int]] = []

    def __call__(self, recipes: Sequence[Recipe], engine: str, _say: object) -> FakeTables:
        self.asked.append(([recipe.name for recipe in recipes], engine, recipes[0].validation.max_requests))
        return self

    def run(self, deadline: float) -> Iterator[FidelityTable]:
        yield from self.before
        if deadline:
            yield from self.now


def test_an_engines_table_stands_beside_the_one_of_packed_models(options: ReferenceOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    found = whole(options)
    assert found.table is not None
    table = found.table.model_copy(update={"engine": "onnxruntime"})
    monkeypatch.setattr(reference_command, "EngineTables", tables := FakeTables([], [table]))
    measured = whole(replace(options, engine="onnxruntime", engine_requests=65))
    assert (measured.engine_table, measured.engine_bars) == (table, found.bars)
    assert tables.asked == [(list(PRECISIONS), "onnxruntime", 65)]
    assert "recipes with onnxruntime:" in (options.out / "fidelity.md").read_text()


def test_an_engine_that_is_not_there_is_missed_before_anything_is_trained(
    options: ReferenceOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(target: str) -> None:
        raise MissingExtraError(f"{target} is not installed", where=target, hint="pip install 'onerec-trt[tensorrt]'")

    monkeypatch.setattr(reference_command, "this_machine", absent)
    with pytest.raises(MissingExtraError, match="tensorrt is not installed"):
        run_reference(replace(options, state=tmp_path / "state", engine="tensorrt"))
    assert not (tmp_path / "state").exists()
    assert not options.out.exists()


def test_what_an_engine_answered_is_in_the_results_before_anything_is_measured(
    options: ReferenceOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = whole(options).table
    assert table is not None
    fewer = table.model_copy(update={"rows": table.rows[:1]})
    monkeypatch.setattr(reference_command, "EngineTables", FakeTables([fewer], []))
    first = replace(options, requests=22, minutes=0.0, engine="onnxruntime")
    run_reference(first)
    (found,) = read_results(options.out)
    assert (found.table, found.engine_table) == (None, fewer)


def test_a_bar_that_an_engine_misses_ends_the_command(options: ReferenceOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    table = whole(options).table
    assert table is not None
    monkeypatch.setattr(reference_command, "EngineTables", FakeTables([], [table]))
    monkeypatch.setattr(reference_command, "bars", lambda _: [gate("overlap@16", "fp8-row", 0.5, ">=", 0.95)])
    with pytest.raises(GateError, match="overlap@16"):
        run_reference(replace(options, engine="onnxruntime"))
    assert "- fp8-row: overlap@16: 0.5, must be >= 0.95" in (options.out / "fidelity.md").read_text()


def test_recipes_are_there_before_anything_is_measured(options: ReferenceOptions, capsys: pytest.CaptureFixture[str]) -> None:
    run_reference(replace(options, requests=23, minutes=0.0, engine="onnxruntime"))
    folder = options.state / f"{SIZE}-seed{SEED}" / "recipes"
    recipes = {path.stem: load_recipe(path) for path in folder.glob("*.yaml")}
    assert recipes.keys() == set(PRECISIONS)
    assert {name: recipe.keep_fp16 for name, recipe in recipes.items()} == {
        name: () if name == "fp16" else REFERENCES[SIZE].keep_fp16 for name in PRECISIONS
    }
    assert (folder / "reference" / "record.json").is_file()
    missing = ", ".join(f"recipe {precision}" for precision in PRECISIONS)
    assert f"not done yet: table, layers, analysis, stress, mixed recipe, {missing};" in capsys.readouterr().out


def test_recipes_that_are_missing_are_named(options: ReferenceOptions) -> None:
    found = whole(options)
    assert found.table is not None
    rows = [row for row in found.table.rows if row.system != "fp8-paper"]
    found = found.model_copy(update={"engine_table": found.table.model_copy(update={"rows": tuple(rows)})})
    assert unfinished(found, "onnxruntime") == ["recipe fp8-paper"]
    assert unfinished(found, "tensorrt") == ["recipe fp8-paper", "recipe fp8-row-block, built again"]


def test_results_say_what_they_were_measured_with(options: ReferenceOptions) -> None:
    environment = whole(replace(options, commit="1234567")).environment
    assert environment["commit"] == "1234567"
    assert environment["torch"] == tool_version("torch")
    assert "gpu" not in environment


@pytest.mark.parametrize(("file", "text"), [("fidelity.json", '{"mine": 1}'), ("fidelity.md", "# Mine\n")])
def test_files_of_somebody_else_are_not_replaced(options: ReferenceOptions, file: str, text: str) -> None:
    options.out.mkdir()
    (options.out / file).write_text(text)
    with pytest.raises(ArtifactError, match="would replace"):
        run_reference(options)
    assert (options.out / file).read_text() == text


def test_results_that_are_malformed_are_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "fidelity.json", {"references": [{"training": {}}]})
    with pytest.raises(ArtifactError, match="malformed"):
        read_results(tmp_path)


def test_the_page_of_the_docs_is_made_from_its_file(tmp_path: Path) -> None:
    results = read_results(DOCS)
    assert {each.training["reference"] for each in results} <= REFERENCES.keys()
    for path in write_results(results, tmp_path):
        committed = DOCS / path.relative_to(tmp_path)
        if path.suffix == ".json":
            assert read_json(path) == json.loads(committed.read_text())
        else:
            assert path.read_text() == committed.read_text(), path.name


def test_bars_are_as_long_as_their_logarithms() -> None:
    picture = bars_svg(Bars("a < b", [("ten", 10.0), ("hundred", 100.0), ("thousand", 1000.0), ("zero", 0.0)]))
    assert "a &lt; b" in picture
    widths = [float(line.split('width="')[1].split('"')[0]) for line in picture.splitlines() if line.startswith("<rect")]
    assert widths == [0.0, 210.0, 420.0, 0.0]


@pytest.mark.parametrize("size", REFERENCES)
@pytest.mark.parametrize("precision", PRECISIONS[1:])
def test_the_layers_that_a_reference_keeps_are_there_in_every_precision(size: str, precision: str) -> None:
    reference = REFERENCES[size]
    everything, left = (quantized_targets(reference.config, precision, keep) for keep in ((), reference.keep_fp16))
    assert (len(left) < len(everything)) == bool(reference.keep_fp16)
