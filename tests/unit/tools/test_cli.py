"""Every command of the command line: what it prints where, and its exit code."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import onerec_trt
import pytest
from click import Command
from onerec_trt.core.records import Record
from onerec_trt.tools import cli, pipeline
from onerec_trt.validation.validate import Validation
from typer.core import TyperGroup
from typer.main import get_command

COMMANDS = (
    "demo",
    "run",
    "calibrate",
    "export",
    "build",
    "validate",
    "recommend",
    "catalogue",
    "sign",
    "report",
    "inspect",
    "analyze",
    "sensitivity",
    "fidelity",
    "bench",
    "dev export-trial",
    "dev random-model",
    "dev bench-operators",
    "dev bench-items",
    "dev bench-rules",
    "dev tune",
    "dev batch-times",
    "dev perf-inputs",
    "dev serving-load",
    "dev serving",
    "dev resample",
    "repository",
    "serve",
    "manifests",
    "dev reference",
)
SUMMARY_GATE = {"name", "recipe", "value", "threshold", "passed"}


class Ended(NamedTuple):
    code: int
    out: str
    err: str


Call = Callable[..., Ended]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Call:
    """Runs the command line in this process; standard output and error as the operating system sees them."""

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["onerec-trt", *map(str, arguments)])
        capfd.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as ending:
            code = int(ending.code or 0)
        return Ended(code, *capfd.readouterr())

    return run


def commands(group: TyperGroup, prefix: str = "") -> dict[str, Command]:
    """Every command by its words, those of groups too."""
    found: dict[str, Command] = {}
    for name, command in group.commands.items():
        found |= commands(command, f"{prefix}{name} ") if isinstance(command, TyperGroup) else {prefix + name: command}
    return found


def all_commands() -> dict[str, Command]:
    return commands(cast(TyperGroup, get_command(cli.app)))


def test_every_command_and_option_is_documented() -> None:
    text = (Path(__file__).parents[3] / "docs" / "commands.md").read_text()
    rows = re.findall(r"^\| `((?:dev )?\S+)[^`]*` \| .* \| (.*) \|$", text, re.M)
    assert {name: set(re.findall(r"--[a-z-]+", options)) for name, options in rows} == {
        name: {option for each in command.params for option in each.opts if option.startswith("--")}
        for name, command in all_commands().items()
    }


def stamps(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in sorted(folder.rglob("record.json"))}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(call: Call, command: str) -> None:
    ended = call(*command.split(), "--help")
    assert ended.code == 0
    assert f"Usage: onerec-trt {command}" in ended.out
    assert len(ended.out.splitlines()) > 5


def test_there_are_no_other_commands() -> None:
    assert set(all_commands()) == set(COMMANDS)


@pytest.mark.parametrize("command", ["", "dev", *COMMANDS])
def test_no_option_is_cut_in_help_of_80_columns(call: Call, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = call(*command.split(), "--help").out
    assert "…" not in shown
    given = all_commands().get(command)
    assert all(option in shown for each in (given.params if given else ()) for option in each.opts if option.startswith("--"))


def test_the_version(call: Call) -> None:
    assert call("--version") == (0, f"onerec-trt {onerec_trt.__version__}\n", "")


def test_help_does_not_wait_for_pytorch() -> None:
    code = "import sys; from onerec_trt.tools import cli; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-P", "-c", code], check=True)


@pytest.mark.parametrize("arguments", [("train",), ("run",), ("run", "--jsonl", "a.yaml"), ("report",), ("tune",), ("dev", "bench")])
def test_wrong_words_are_a_usage_error(call: Call, arguments: tuple[str, ...]) -> None:
    ended = call(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert "Usage: onerec-trt" in ended.err


def test_a_typed_error_is_a_message_with_its_paths_in_one_piece(call: Call, tmp_path: Path) -> None:
    path = tmp_path / ("a" * 120) / "recipe.yaml"
    ended = call("run", path)
    assert (ended.code, ended.out) == (1, "")
    assert ended.err == f"RecipeError: recipe not found\n  where: {path}\n  to do: give the path of a YAML file; configs/ holds examples\n"


def test_ctrl_c_is_said_and_has_its_exit_code(call: Call, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "run_stages", interrupted)
    ended = call("run", world / "fp16.yaml")
    assert (ended.code, ended.out) == (130, "")
    assert "nothing is half-written" in ended.err


@pytest.mark.parametrize("stage", ["calibrate", "export", "build"])
def test_a_stage_gives_its_record_as_json_and_nothing_else(call: Call, world: Path, stage: str) -> None:
    ended = call(stage, world / "fp16.yaml", "--json")
    assert ended.code == 0
    assert Record.model_validate(json.loads(ended.out)).stage == stage
    assert "up to date" in ended.err
    assert call(stage, world / "fp16.yaml").out == ""


def test_validate_gives_every_gate(call: Call, world: Path) -> None:
    ended = call("validate", world / "fp8-row.yaml", "--json")
    assert ended.code == 0
    assert Validation.model_validate(json.loads(ended.out)).passed
    table = call("validate", world / "fp8-row.yaml")
    assert table.code == 0
    assert "gates passed" in table.out
    assert "overlap@10" in table.out


def test_run_leaves_report_and_summary_and_does_nothing_the_second_time(call: Call, world: Path) -> None:
    before = stamps(world / "out")
    first = call("run", world / "fp8-row.yaml", "--json")
    assert first.code == 0
    folder = world / "out" / "fp8-row"
    summary = json.loads(first.out)
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert "</html>" in (folder / "report.html").read_text()
    assert f"report: {folder / 'report.html'}" in first.err
    assert first.err.count("up to date") == 4

    assert summary.keys() == {"gates", "plans", "recipes"}
    assert all(gate.keys() == SUMMARY_GATE and gate["passed"] is True for gate in summary["gates"])
    assert summary["plans"] == [{"path": "fp8-row/plans/sm89-b1-16-s2-16.plan", "target": "tensorrt-rtx sm 8.9", "validated": False}]
    assert summary["recipes"].keys() == {"fp8-row"}
    figures = summary["recipes"]["fp8-row"]
    assert figures.keys() == {"hit@10", "overlap@10", "scoring_error_vs_fp32", "scoring_error_ratio", "valid_items"}
    assert 0.9 <= figures["overlap@10"] <= 1
    assert figures["scoring_error_ratio"] <= 1.1

    second = call("run", world / "fp8-row.yaml")
    assert second.code == 0
    assert "fp8-row" in second.out
    assert stamps(world / "out") == before


def test_a_failed_gate_exits_with_2_and_leaves_report_and_summary(call: Call, world: Path, make_recipe: Callable[..., Path]) -> None:
    strict = make_recipe(world, "fp8-row", validate={"scoring_error_ratio": 0.01})
    ended = call("run", strict, "--json")
    assert ended.code == 2
    assert ended.err.count("up to date") == 3
    assert "GateError: " in ended.err
    assert "[fp8-row] scoring log-probabilities: " in ended.err
    assert "must be <= 0.01" in ended.err
    folder = world / "out" / "fp8-row"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary == json.loads(ended.out)
    failed = {gate["name"] for gate in summary["gates"] if not gate["passed"]}
    assert {"scoring log-probabilities", "scoring KL"} <= failed
    assert "overlap@10" not in failed
    assert (folder / "report.html").is_file()

    again = call("validate", strict)
    assert again.code == 2
    assert "scoring KL" in again.out


def test_report_shows_recipes_side_by_side(call: Call, world: Path, tmp_path: Path) -> None:
    page = tmp_path / "pages" / "both.html"
    ended = call("report", world / "fp16.yaml", world / "fp8-row.yaml", "--out", page)
    assert (ended.code, ended.out) == (0, f"{page}\n")
    text = page.read_text()
    assert "fp16" in text
    assert "fp8-row" in text


def test_report_of_what_was_not_run_is_an_error(call: Call, world: Path, make_recipe: Callable[..., Path], tmp_path: Path) -> None:
    ended = call("report", make_recipe(world, "fp8-paper"), "--out", tmp_path / "report.html")
    assert ended.code == 1
    assert "ArtifactError: " in ended.err
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("path", "kind", "key"),
    [
        ("out/fp8-row/plans/sm89-b1-16-s2-16.plan", "plan", "compute_capability"),
        ("out/fp8-row/calibrated", "stage", "wrote"),
        ("out/reference", "stage", "facts"),
        ("checkpoint", "checkpoint", "active_parameters"),
    ],
)
def test_inspect_knows_every_artifact(call: Call, world: Path, path: str, kind: str, key: str) -> None:
    ended = call("inspect", world / path, "--json")
    assert ended.code == 0
    facts = json.loads(ended.out)
    assert facts["kind"] == kind
    assert key in facts
    assert key in call("inspect", world / path).out


@pytest.mark.parametrize("name", ["heldout.parquet", "nothing", ".", "nothing.plan"])
def test_inspect_refuses_what_it_does_not_know(call: Call, world: Path, name: str) -> None:
    ended = call("inspect", world / name)
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.startswith("ArtifactError: ")
    assert "to do: " in ended.err


def test_inspect_notices_a_changed_plan(call: Call, world: Path) -> None:
    plan = world / "out/fp8-row/plans/sm89-b1-16-s2-16.plan"
    plan.write_bytes(plan.read_bytes()[:-1])
    ended = call("inspect", plan)
    assert ended.code == 1
    assert "its record says" in ended.err
