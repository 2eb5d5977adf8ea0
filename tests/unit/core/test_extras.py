"""What is optional is named by its extra; the package's metadata, the table of extras and the lock file agree."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import onerec_trt
import pytest
from onerec_trt.core.errors import MissingExtraError
from onerec_trt.core.extras import EXTRA_OF, missing_extra, optional
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[3]
PACKAGE = Path(onerec_trt.__file__).parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DISTRIBUTIONS = {
    "markupsafe": "jinja2",  # which requires it
    "modelopt": "nvidia-modelopt",
    "onnx_ir": "onnxscript",  # which requires it
    "pynvml": "nvidia-ml-py",
    "yaml": "pyyaml",
}


def requirements(extra: str) -> dict[str, Requirement]:
    """Of an extra, with those of the extras of this package that it names; by distribution."""
    found: dict[str, Requirement] = {}
    for text in PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]:
        requirement = Requirement(text)
        if requirement.name == PROJECT["name"]:
            for inner in requirement.extras:
                found |= requirements(inner)
        else:
            found[canonicalize_name(requirement.name)] = requirement
    return found


def pins() -> dict[str, str]:
    """Versions in the lock file by distribution."""
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    found = (re.match(r"([A-Za-z0-9._-]+)==([^ ;\\]+)", line) for line in lines)
    return {canonicalize_name(match[1]): match[2] for match in found if match}


def test_a_module_that_is_there_is_given() -> None:
    assert optional("yaml") is sys.modules["yaml"]


def test_a_missing_module_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # as if it were not installed
    with pytest.raises(MissingExtraError, match="pyarrow is not installed") as caught:
        optional("pyarrow")
    assert "onerec-trt[compiler]" in caught.value.hint


def test_a_module_that_no_extra_brings_is_python_s_own_error() -> None:
    assert missing_extra(ModuleNotFoundError(name="nowhere")) is None
    with pytest.raises(ModuleNotFoundError, match="nowhere"):
        optional("nowhere")


@pytest.mark.parametrize(("module", "extra"), EXTRA_OF.items())
def test_the_extra_of_a_module_requires_it(module: str, extra: str) -> None:
    assert canonicalize_name(DISTRIBUTIONS.get(module, module)) in requirements(extra)


@pytest.mark.parametrize("extra", ["rtx", "tensorrt"])
def test_extras_that_build_bring_the_compiler_and_the_runtime_s_needs(extra: str) -> None:
    assert requirements(extra).keys() >= requirements("compiler").keys()
    assert {"torch", "nvidia-ml-py"} <= requirements(extra).keys()


def test_every_module_that_the_package_imports_is_required_by_base_or_an_extra() -> None:
    base = {"numpy", "pydantic", "safetensors"}
    assert base == requirements("").keys()
    optional_elsewhere = {"triton", "google", "tensorrt", "tensorrt_rtx"}  # with PyTorch, with ONNX, in one module that says so itself
    known = base | EXTRA_OF.keys() | optional_elsewhere | set(sys.stdlib_module_names) | {"onerec_trt"}
    unknown = {}
    for path in PACKAGE.rglob("*.py"):
        if {"tests", "examples", ".venv", ".venv-server"} & set(path.relative_to(PACKAGE).parts):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            unknown |= {name: path for name in names if name.partition(".")[0] not in known}
    assert unknown == {}


@pytest.mark.parametrize("extra", ["", *PROJECT["optional-dependencies"]])
def test_the_metadata_holds_ranges_and_the_lock_file_pins_within_them(extra: str) -> None:
    locked = pins()
    for name, requirement in requirements(extra).items():
        assert not any(each.operator == "==" for each in requirement.specifier), f"{requirement} is a pin"
        if name == "tensorrt":  # for machines with a GPU alone
            continue
        assert name in locked, f"{name} is not in requirements.lock"
        assert requirement.specifier.contains(locked[name], prereleases=True), f"{requirement}, locked at {locked[name]}"


@pytest.mark.parametrize("module", ["typer", "pyarrow", "yaml"])
def test_a_command_without_an_extra_names_it(module: str) -> None:
    program = f"import sys; sys.modules[{module!r}] = None; sys.argv = ['onerec-trt', 'run', 'recipe.yaml']\n"
    program += "from onerec_trt.tools.entry import main; main()"
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == MissingExtraError.exit_code
    assert "Traceback" not in done.stderr
    assert f"MissingExtraError: the module {module} is not installed" in done.stderr
    assert "pip install 'onerec-trt[compiler]'" in done.stderr


def test_the_installed_command_starts_where_a_missing_extra_is_named() -> None:
    assert PROJECT["scripts"] == {"onerec-trt": "onerec_trt.tools.entry:main"}
