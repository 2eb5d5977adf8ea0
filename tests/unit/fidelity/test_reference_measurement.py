"""A trained reference measured whole, at toy size: what the JSON file holds, what the docs page says, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from onerec_trt.core.artifacts import write_json
from onerec_trt.core.errors import ArtifactError, GateError
from onerec_trt.fidelity import reference_measurement
from onerec_trt.fidelity.reference_measurement import ReferenceMeasurement, measure_reference
from onerec_trt.tools.fidelity import command
from onerec_trt.tools.fidelity.results_page import read_measurement, write_results
from onerec_trt.tools.fidelity.svg import Bars, bars_svg

from .conftest import SEED, SIZE, Trained

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def measured(trained: Trained) -> ReferenceMeasurement:
    return measure_reference(SIZE, SEED, trained.root, 24, 8, CPU, lambda _: None)


def test_it_holds_every_precision_and_every_part(measured: ReferenceMeasurement) -> None:
    systems = [row.system for row in measured.table.rows]
    assert systems == ["fp16", "fp8-static", "fp8-row", "fp8-paper", "fp8-row-block", "fp16, another batch"]
    assert {gate.recipe for gate in measured.bars} == set(systems[1:-1])
    assert measured.layers is not None
    assert [found.precision for found in measured.layers.sensitivity] == [recipe.precision for recipe in measured.layers.mixed]
    assert measured.training["finished"]
    assert measured.stress is not None
    assert measured.stress.expert is not None


def test_a_part_that_is_there_is_not_measured_again(
    measured: ReferenceMeasurement, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference_measurement, "run_fp32", lambda *_: pytest.fail("FP32 ran again"))
    assert measure_reference(SIZE, SEED, trained.root, 24, 8, CPU, lambda _: None) == measured


def test_the_page_shows_the_numbers_of_the_file(measured: ReferenceMeasurement, tmp_path: Path) -> None:
    write_json(tmp_path / "one.json", measured.model_dump(mode="json"))
    written = write_results([read_measurement(tmp_path / "one.json")], tmp_path / "results")
    assert all(path.is_file() for path in written)
    stored = json.loads(written[0].read_text())["references"][0]
    page = written[1].read_text()
    overlap = next(cell for cell in stored["table"]["rows"][1]["cells"] if cell["metric"] == "overlap@16")
    assert f"{overlap['value']:.4g} [" in page
    assert stored["training"]["checkpoint_sha256"][:16] in page
    assert all((tmp_path / "results" / link).is_file() for link in (path.relative_to(tmp_path / "results") for path in written))


def test_the_table_alone_gives_a_page_without_layers_and_outliers(measured: ReferenceMeasurement, trained: Trained, tmp_path: Path) -> None:
    alone = measure_reference(SIZE, SEED, trained.root, 24, 8, CPU, lambda _: None, table_only=True)
    assert alone == measured.model_copy(update={"layers": None, "stress": None})
    written = write_results([alone], tmp_path)
    page = written[1].read_text()
    assert "overlap@16" in page
    assert "Outliers planted" not in page
    assert "fidelity-kinds" not in page
    assert [path.name for path in written[2:]] == [f"fidelity-spread-{SIZE}.svg"]


def test_a_file_that_is_no_measurement_is_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"training": {}})
    with pytest.raises(ArtifactError, match="malformed"):
        read_measurement(tmp_path / "x.json")


def test_a_reference_that_is_not_trained_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="not trained to the end"):
        measure_reference(SIZE, SEED, tmp_path, 24, 8, CPU, lambda _: None)


def test_the_command_writes_the_file_before_a_missed_bar_ends_it(
    measured: ReferenceMeasurement, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gate = measured.bars[0].model_copy(update={"value": 2.0, "passed": False})
    monkeypatch.setattr(command, "measure", lambda *_: measured.model_copy(update={"bars": (gate,)}))
    with pytest.raises(GateError, match="1 of 1 gates failed"):
        command.measure_reference(SIZE, SEED, tmp_path, tmp_path / "out.json", 24, 8, False, "cpu")
    assert (tmp_path / "out.json").is_file()
    assert "fp8-row-block" in capsys.readouterr().out


def test_bars_are_as_long_as_their_logarithms() -> None:
    picture = bars_svg(Bars("a < b", [("ten", 10.0), ("hundred", 100.0), ("thousand", 1000.0), ("zero", 0.0)]))
    assert "a &lt; b" in picture
    widths = [float(line.split('width="')[1].split('"')[0]) for line in picture.splitlines() if line.startswith("<rect")]
    assert widths == [0.0, 210.0, 420.0, 0.0]
