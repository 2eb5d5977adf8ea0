"""The analysis of a checkpoint: statistics that are right, plots and tables that say them, JSON that holds them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from onerec_trt.core.errors import RequestError
from onerec_trt.fidelity.analysis import Analysis, analyze
from onerec_trt.fidelity.distributions import summarize
from onerec_trt.models.layout import layout
from onerec_trt.tools.fidelity import command
from onerec_trt.tools.fidelity.analysis_page import write_analysis

from .conftest import Trained


@pytest.fixture(scope="module")
def analysis(trained: Trained) -> Analysis:
    return analyze(trained.checkpoint, trained.calibration_file)


def test_every_weight_is_there_with_its_statistics(analysis: Analysis, trained: Trained) -> None:
    model = trained.model()
    weights = {tensor.name: tensor for tensor in analysis.checkpoint.tensors if tensor.part == "weight"}
    assert set(weights) == set(layout(model.config).tensors)
    for name, value in model.state_dict().items():
        assert weights[name].absmax == pytest.approx(float(value.abs().max()))
        assert weights[name].variance == pytest.approx(float(value.double().var(correction=0)), rel=1e-3, abs=1e-12)


def test_what_fp8_can_touch_is_judged_and_nothing_else(analysis: Analysis, trained: Trained) -> None:
    quantizable = {linear.weight for linear in layout(trained.model().config).linears if linear.scheme is not None}
    assert {t.name for t in analysis.checkpoint.tensors if t.judgement and t.part == "weight"} == quantizable
    judged = {t.name for t in analysis.checkpoint.tensors if t.judgement and t.part == "activation"}
    assert judged == {t.name for t in analysis.checkpoint.tensors if t.name.endswith(".input")}


def test_the_ranking_model_spreads_its_activations_far_wider(analysis: Analysis) -> None:
    own, ranking = (found.average("activation").variance for found in (analysis.checkpoint, analysis.ranking))
    assert ranking > 1e3 * own


def test_the_summary_counts_every_judged_tensor(analysis: Analysis) -> None:
    summary = summarize(analysis.checkpoint)
    judged = [t for t in analysis.checkpoint.tensors if t.judgement]
    assert sum(count for counts in summary.verdicts.values() for count in counts.values()) == len(judged)
    assert set(summary.kinds["weight"]) >= {"cross q", "expert down", "norm", "embedding", "head"}


def test_the_page_names_tensors_and_needs_nothing_beside_it(analysis: Analysis, tmp_path: Path) -> None:
    write_analysis(analysis, page := tmp_path / "analysis.html")
    text = page.read_text()
    assert "blocks.1.ffn.experts.2.down.weight" in text
    assert "per-tensor scale is safe" in text
    order = [text.index(mark) for mark in ("<td>OneRec-V2, published</td>", 'id="plots"', "<h2>Every tensor, worst first</h2>")]
    assert order == sorted(order)
    assert 'src="http' not in text


def test_the_command_prints_tables_or_json(trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command.analyze(trained.checkpoint, trained.calibration_file, tmp_path / "a.html", None, 16, as_json=False)
    printed = capsys.readouterr().out
    assert "traditional ranking model, published" in printed
    assert max(map(len, printed.splitlines())) <= 200
    command.analyze(trained.checkpoint, trained.calibration_file, tmp_path / "a.html", None, 16, as_json=True)
    assert Analysis.model_validate(json.loads(capsys.readouterr().out)).checkpoint.requests == 16


def test_too_few_requests_are_refused(trained: Trained) -> None:
    with pytest.raises(RequestError, match="at least ten"):
        analyze(trained.checkpoint, trained.calibration_file, limit=4)
