"""Ctrl-C, kill -9 and a full disk in every stage: no artifact half-written, the earlier one untouched, the next run succeeds."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]
Start = Callable[..., Any]
Tree = Callable[[Path], dict[str, str]]
Partials = Callable[[Path], list[str]]
FOLDERS = {"calibrate": "calibrated", "export": "exported", "build": "plans", "validate": "validated"}
# An option that makes each stage run again, and the most bytes a file may have for that stage to fail half-way.
CHANGES: dict[str, dict[str, Any]] = {
    "calibrate": {"calibration": {"batch_size": 7}},
    "export": {"export": {"beam": [8, 8, 8]}},
    "build": {"build": {"profiles": [{"batch": [1, 2, 4], "context": [2, 8, 16]}]}},
    "validate": {"validate": {"overlap": 0.91, "max_requests": 64}},
}
FILE_LIMIT = {"calibrate": 16_000, "export": 200_000, "build": 1_000_000, "validate": 8_000}


@pytest.fixture
def root(world: Path) -> Path:
    """Where the stages of the finished FP16 run lie."""
    return world / "out" / "fp16"


def without_partials(tree: dict[str, str]) -> dict[str, str]:
    return {name: digest for name, digest in tree.items() if ".partial-" not in name}


@pytest.mark.parametrize("stage", FOLDERS)
def test_ctrl_c_and_kill_9(
    start: Start, run: Run, world: Path, root: Path, make_recipe: Callable[..., Path], tree: Tree, partials: Partials, stage: str
) -> None:
    recipe, before = make_recipe(world, "fp16", **CHANGES[stage]), tree(root)

    def has_begun() -> bool:
        return any(name.startswith(f".partial-{FOLDERS[stage]}-") for name in partials(root))

    command = start(stage, recipe)
    command.wait_for(has_begun)
    command.signal(signal.SIGINT)
    ended = command.ended()
    assert (ended.code, ended.out) == (130, ""), ended.err
    assert "nothing is half-written" in ended.err
    assert "Traceback" not in ended.err
    assert tree(root) == before
    assert partials(world) == []

    command = start(stage, recipe)
    command.wait_for(has_begun)
    command.signal(signal.SIGKILL)
    assert command.ended().code == -signal.SIGKILL
    assert without_partials(tree(root)) == before

    ended = run(stage, recipe, "--json")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)  # and nothing else on standard output, although the stage has run
    (options,) = CHANGES[stage].values()
    record = json.loads((root / FOLDERS[stage] / "record.json").read_text())
    assert options.items() <= record["options"].items()
    after = tree(root)
    assert partials(world) == []
    changed = {name.split("/")[0] for name in after if after[name] != before.get(name)}
    assert changed == {FOLDERS[stage]}


@pytest.mark.parametrize("stage", FOLDERS)
def test_files_that_cannot_be_written_whole(
    run: Run, world: Path, make_recipe: Callable[..., Path], tree: Tree, partials: Partials, stage: str
) -> None:
    recipe = make_recipe(world, "fp16", **CHANGES[stage])
    before = tree(world)
    ended = run(stage, recipe, file_limit=FILE_LIMIT[stage])
    assert (ended.code, ended.out) == (1, ""), ended.err
    assert "\nArtifactError: a file is too large for the disk or for the process" in ended.err  # below the line that the stage began
    assert "to do: " in ended.err
    assert "Traceback" not in ended.err
    assert tree(world) == before
    assert partials(world) == []


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    made = mount and os.geteuid() == 0 and subprocess.run([mount, "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], check=False)
    if not made or made.returncode:
        pytest.skip("mounting a small file system is not allowed here; the file size limit above covers every stage")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk(run: Run, world: Path, tiny_disk: Path, make_recipe: Callable[..., Path], partials: Partials) -> None:
    ended = run("calibrate", make_recipe(world, "fp16", output=str(tiny_disk)))
    assert ended.code == 1
    assert "\nArtifactError: the disk is full\n  where: " in ended.err
    assert "to do: free space" in ended.err
    assert partials(tiny_disk) == []
    assert not (tiny_disk / "fp16" / "calibrated").exists()
