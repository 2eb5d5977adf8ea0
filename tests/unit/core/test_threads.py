"""Thread counts and waiting are set once, reach every library and child process, and give way to the user's own settings."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from onerec_trt.core import threads
from onerec_trt.core.threads import ahead, usable_cores

SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", *threads._WAIT_VARIABLES)
# Started the way a command is: the settings come before PyTorch, whose OpenMP then prints what it goes by.
COMMAND = """
import json, os, subprocess, sys
from onerec_trt.tools import cli
sys.argv = ["onerec-trt", "--version"]
try:
    cli.main()
except SystemExit:
    pass
import torch
code = "import json, os; print(json.dumps({k: v for k, v in os.environ.items() if k.startswith('OMP_')}))"
print(json.dumps({"torch": torch.get_num_threads(), "child": json.loads(subprocess.check_output([sys.executable, "-c", code]))}))
"""


@pytest.fixture
def unset(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment in which the user has set nothing about threads; what a test changes there is taken back."""
    for name in SETTINGS:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return monkeypatch


def openmp_of_a_command(**user: str) -> tuple[dict[str, str], dict[str, object]]:
    """What OpenMP says of its settings in a process that has begun a command, and what that process saw."""
    environment = {key: value for key, value in os.environ.items() if key not in SETTINGS}
    environment |= {"OMP_DISPLAY_ENV": "VERBOSE", **user}
    done = subprocess.run([sys.executable, "-P", "-c", COMMAND], env=environment, check=True, capture_output=True, text=True)
    return dict(re.findall(r"(\w+) = '(.*)'", done.stderr)), json.loads(done.stdout.splitlines()[-1])


def test_threads_of_a_command_and_of_its_children_sleep_while_they_wait() -> None:
    openmp, seen = openmp_of_a_command()
    assert openmp["OMP_WAIT_POLICY"] == "PASSIVE"
    assert openmp["GOMP_SPINCOUNT"] == "0"
    assert seen["torch"] == threads.usable_cores()
    child = seen["child"]
    assert isinstance(child, dict)
    assert (child["OMP_WAIT_POLICY"], child["OMP_NUM_THREADS"]) == ("PASSIVE", str(threads.usable_cores()))


def test_settings_of_the_user_stay() -> None:
    openmp, seen = openmp_of_a_command(OMP_NUM_THREADS="1", GOMP_SPINCOUNT="77")
    assert openmp["GOMP_SPINCOUNT"] == "77"
    assert seen["torch"] == 1
    child = seen["child"]
    assert isinstance(child, dict)
    assert child["OMP_NUM_THREADS"] == "1"
    assert "OMP_WAIT_POLICY" not in child


@pytest.mark.parametrize(("given", "expected"), [("3", 3), ("5,2", 5), (" 4 ", 4), ("0", None), ("many", None), ("", None), ("-1", None)])
def test_thread_count_is_the_users_where_that_is_a_number(unset: pytest.MonkeyPatch, given: str, expected: int | None) -> None:
    unset.setenv("OMP_NUM_THREADS", given)
    assert threads.thread_count() == (expected or threads.usable_cores())


@pytest.mark.parametrize(
    ("content", "expected"),
    [("150000 100000", 2), ("50000 100000", 1), ("400000 100000", 4), ("800000 100000", 4), ("max 100000", 4), ("damaged", 4), (None, 4)],
)
def test_a_container_gives_no_more_cores_than_it_may_keep_busy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str | None, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2, 3})
    limit = tmp_path / "cpu.max"
    if content is not None:
        limit.write_text(content + "\n")
    assert threads.usable_cores(limit) == expected


def test_results_come_in_order_and_not_all_at_once() -> None:
    taken: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    results = ahead(lambda number: 2 * number, numbers())
    assert taken == []
    assert next(results) == 0
    assert len(taken) == usable_cores() + 1
    assert list(results) == list(range(2, 200, 2))


def test_an_error_in_a_thread_is_raised_where_its_result_is_wanted() -> None:
    results = ahead(lambda number: 1 // number, [1, 0])
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)
