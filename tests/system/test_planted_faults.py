"""Faults planted where a bug of the product would put them, records made consistent: each fails a gate that names the place.

docs/validation.md shows this list, and how many faults each gate stops: both are held here, and that no gate is idle.
"""

from __future__ import annotations

import ast
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from onerec_trt.calibration.quantized import open_quantized
from onerec_trt.core.recipe import Recipe, load_recipe
from onerec_trt.tools.pipeline import calibration_of, folders_of, run_stages
from onerec_trt.validation.gates import Gate
from onerec_trt.validation.source_parity import source_gate
from onerec_trt.validation.validate import read_validation

from .planted_faults import FAULTS, SCORING_TRACE, TRACE, Fault, plant

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs" / "validation.md"
# Gates that no fault in the small world can fail: the tests that plant one for them, in tests/unit/validation/.
ELSEWHERE = {
    "FP16 underflow": ("test_fp16_underflow.py", "test_underflow_beyond_the_models_own_noise_fails_by_name"),
    "share of valid items": ("test_catalogue.py", "test_an_item_that_nobody_offers_fails_by_name"),
    "scores are the scoring graph's, mean": ("test_serving_parity.py", "test_plans_may_differ_by_the_noise_of_their_engine"),
    "operator": ("test_operator_faults.py", "test_a_result_a_quarter_too_large_fails_the_operators_gate"),
}


def gates_of(recipe: Recipe, fault: Fault) -> list[Gate]:
    if fault.source_alone:
        return [source_gate(recipe.name, calibration_of(recipe), open_quantized(folders_of(recipe).calibrated))]
    list(run_stages(recipe, ["validate"]))
    return read_validation(folders_of(recipe).validated).gates


@pytest.fixture(scope="module")
def failed_gates(
    finished_world: Path, make_recipe: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Fault], dict[str, Gate]]:
    """The gates that a fault fails, by name; each fault is planted once, in a world of its own."""

    @cache
    def failed(name: str) -> dict[str, Gate]:
        (fault,) = [each for each in FAULTS if each.name == name]
        world = tmp_path_factory.mktemp("planted") / "world"
        shutil.copytree(finished_world, world)
        recipe = load_recipe(make_recipe(world, fault.precision))
        list(run_stages(recipe, ["calibrate"]))  # what the finished world does not have
        plant(folders_of(recipe), fault)
        return {gate.name: gate for gate in gates_of(recipe, fault) if not gate.passed}

    return lambda fault: failed(fault.name)


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name.replace(" ", "-") for fault in FAULTS])
def test_a_planted_fault_fails_the_gates_that_see_it(
    failed_gates: Callable[[Fault], dict[str, Gate]], fault: Fault, capfd: pytest.CaptureFixture[str]
) -> None:
    failed = failed_gates(fault)
    assert capfd.readouterr().out == ""  # where the command's result belongs
    assert set(fault.gates) <= failed.keys(), [gate.sentence() for gate in failed.values()]
    assert fault.place in failed[fault.gates[0]].sentence()
    if fault.files and "weights" not in fault.gates[0] and fault.elsewhere is None:
        assert {TRACE, SCORING_TRACE} & failed.keys()


def test_the_docs_show_what_every_fault_fails_and_what_every_gate_stops() -> None:
    counts = Counter(gate for fault in FAULTS for gate in fault.gates)
    faults_table = "\n".join(f"| {fault.name} | {'; '.join(fault.gates)} |" for fault in FAULTS)
    counts_table = "\n".join(f"| {gate} | {count} |" for gate, count in counts.most_common())
    shown = DOCS.read_text()
    assert faults_table in shown, f"docs/validation.md must show:\n{faults_table}"
    assert counts_table in shown, f"docs/validation.md must show:\n{counts_table}"
    for gate, (file, _) in ELSEWHERE.items():
        assert re.search(rf"^\| \*{re.escape(gate)}[^*]*\*.*`{file}` \|$", shown, re.M), f"docs/validation.md must name {file} for {gate}"


def gate_calls() -> Iterator[str]:
    """The name of every gate in the source of validation/ as a pattern, where it stands in the call itself."""
    for path in sorted((ROOT / "validation").glob("*.py")):
        for each in ast.walk(ast.parse(path.read_text())):
            if isinstance(each, ast.Call) and isinstance(each.func, ast.Name) and each.func.id == "gate":
                name = each.args[0]
                if isinstance(name, ast.Constant):
                    yield re.escape(str(name.value))
                elif isinstance(name, ast.JoinedStr):
                    yield "".join(re.escape(str(part.value)) if isinstance(part, ast.Constant) else ".+" for part in name.values)


def test_no_gate_is_idle(finished_recipe: Callable[[str], Recipe]) -> None:
    """Some fault fails every gate of a validation, and every gate that the source names."""
    stopping = {gate for fault in FAULTS for gate in fault.gates}
    gates = {gate.name for gate in read_validation(folders_of(finished_recipe("fp8-row")).validated).gates}
    assert stopping <= gates
    assert {gate for gate in gates if not gate.startswith("operator ")} - stopping - ELSEWHERE.keys() == set()
    patterns = set(gate_calls())
    assert len(patterns) > 15
    assert [pattern for pattern in patterns if not any(re.fullmatch(pattern, name) for name in stopping | ELSEWHERE.keys())] == []
    for file, test in ELSEWHERE.values():
        assert f"def {test}(" in (ROOT / "tests" / "unit" / "validation" / file).read_text()
