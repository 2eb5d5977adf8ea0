"""The runtime brings along none of the compiler, and none of this package's folders but core."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import onerec_trt
import pytest

PACKAGE = Path(onerec_trt.__file__).parent
MODULES = [f"onerec_trt.runtime.{path.stem}" for path in sorted((PACKAGE / "runtime").glob("*.py")) if path.stem != "__init__"]
FOREIGN = (
    "onnx",
    "onnxscript",
    "onnx_ir",
    "yaml",
    "rich",
    "typer",
    "pyarrow",
    "modelopt",
    "polygraphy",
    "ml_dtypes",
    "triton",
    "plotly",
    "jinja2",
)
FOLDERS = ("models", "operators", "calibration", "export", "builders", "validation", "fidelity", "server", "tools", "configs")


def imported_by(program: str) -> list[str]:
    """Modules in a bare interpreter after a program has run."""
    code = f"{program}\nimport sys\nprint(*sys.modules, sep='\\n')"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.fixture(scope="module")
def modules() -> list[str]:
    return imported_by("\n".join(f"import {name}" for name in MODULES))


def test_every_module_of_the_runtime_was_asked(modules: list[str]) -> None:
    assert len(MODULES) > 10
    assert set(MODULES) <= set(modules)


def test_nothing_of_the_compiler_is_imported(modules: list[str]) -> None:
    assert sorted({name.partition(".")[0] for name in modules} & set(FOREIGN)) == []


def test_no_other_folder_is_imported(modules: list[str]) -> None:
    assert [name for name in modules if name.startswith(tuple(f"onerec_trt.{folder}" for folder in FOLDERS))] == []


def test_onnx_runtime_is_not_imported_before_it_is_asked_for(modules: list[str]) -> None:
    assert "onnxruntime" not in modules


def test_the_runner_of_exported_graphs_needs_no_onnx(tmp_path: Path) -> None:
    program = (
        "from pathlib import Path\n"
        "from onerec_trt.core.errors import ArtifactError\n"
        "from onerec_trt.runtime.onnxruntime_runner import OnnxRuntimeRunner\n"
        "try:\n"
        f"    OnnxRuntimeRunner(Path({str(tmp_path / 'model.onnx')!r}))\n"
        "except ArtifactError:\n"
        "    pass"
    )
    modules = imported_by(program)
    assert "onnxruntime" in modules
    assert "onnx" not in modules
