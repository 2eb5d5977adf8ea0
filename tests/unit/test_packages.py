"""The lists of the package's folders agree with the folders: in pyproject.toml what is installed, in the Makefile what is watched."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
ELSEWHERE = {"tests", "docs", "examples", "build", "out"}


def folders_with_code() -> set[str]:
    """Folders below the root that hold modules of the package, such as `operators/kernels`."""
    found = {path.parent.relative_to(ROOT) for path in ROOT.rglob("*.py") if path.parent != ROOT}
    return {str(folder) for folder in found if folder.parts[0] not in ELSEWHERE and not folder.parts[0].startswith(".")}


def test_every_folder_with_code_is_installed() -> None:
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert sorted(packages) == sorted(["onerec_trt", *(f"onerec_trt.{folder.replace('/', '.')}" for folder in folders_with_code())])


def test_the_makefile_watches_every_folder() -> None:
    match = re.search(r"^FOLDERS := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert match is not None
    assert sorted(match[1].split()) == sorted({folder.split("/")[0] for folder in folders_with_code()})


def test_package_data_exists() -> None:
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    for package, patterns in data.items():
        folder = ROOT.joinpath(*package.split(".")[1:])
        assert all(list(folder.glob(pattern)) for pattern in patterns), package
