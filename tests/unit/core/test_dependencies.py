"""Dependencies report nothing to their makers, and work for accounts that no list names."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from onerec_trt.core import dependencies
from onerec_trt.core.dependencies import cache_root


def child(code: str, tmp_path: Path, *, known: bool = False, **environment: str) -> str:
    """What a new process prints that has nothing in its environment, under an account that no list names unless `known`."""
    hidden = "" if known else "import pwd\ndef none(_): raise KeyError('uid')\npwd.getpwuid = none\n"
    given = {"PATH": os.environ["PATH"], "PYTHONPATH": os.environ.get("PYTHONPATH", ""), "TMPDIR": str(tmp_path), **environment}
    done = subprocess.run([sys.executable, "-P", "-c", hidden + code], env=given, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


SHOW = """
import subprocess, sys, onerec_trt
show = "import os; print(os.environ['ORT_DISABLE_TELEMETRY'])"
print(subprocess.run([sys.executable, "-c", show], capture_output=True, text=True).stdout)
"""


@pytest.mark.parametrize(("given", "seen"), [({}, "1"), ({"ORT_DISABLE_TELEMETRY": "0"}, "0"), ({"ORT_DISABLE_TELEMETRY": "1"}, "1")])
def test_reports_are_off_in_child_processes_too_unless_the_user_turned_them_on(tmp_path: Path, given: dict[str, str], seen: str) -> None:
    assert child(SHOW, tmp_path, **given) == seen


NAMED = """
import onerec_trt, getpass, os, pathlib
print(getpass.getuser(), pathlib.Path.home(), os.path.expanduser("~/x"))
"""


def test_an_account_without_name_and_home_gets_both(tmp_path: Path) -> None:
    home = tmp_path / f"onerec-trt-{os.getuid()}"
    assert child(NAMED, tmp_path) == f"uid-{os.getuid()} {home} {home}/x"
    assert list(tmp_path.iterdir()) == [home]
    assert home.stat().st_mode & 0o777 == 0o700
    assert child(NAMED, tmp_path).endswith(f"{home}/x"), "the next process finds it again"


@pytest.mark.parametrize("kind", ["a link", "a file", "a folder that others can write"])
def test_a_home_that_is_somebody_elses_is_not_used(tmp_path: Path, kind: str) -> None:
    """Compiled code is loaded from there."""
    home, theirs = tmp_path / f"onerec-trt-{os.getuid()}", tmp_path / "theirs"
    theirs.mkdir()
    if kind == "a link":
        home.symlink_to(theirs)
    elif kind == "a file":
        home.touch()
    else:
        home.mkdir()
        home.chmod(0o777)
    used = Path(child(NAMED, tmp_path).split()[-1]).parent
    assert used.parent == tmp_path
    assert used not in (home, theirs)
    assert (used.stat().st_mode & 0o777, used.stat().st_uid) == (0o700, os.getuid())


def test_what_is_known_of_an_account_stays(tmp_path: Path) -> None:
    assert child(NAMED, tmp_path, USER="me", HOME="/home/me") == "me /home/me /home/me/x"


def test_pytorch_loads_without_an_account(tmp_path: Path) -> None:
    code = "import onerec_trt; from torch._inductor.runtime.cache_dir_utils import cache_dir; print(cache_dir())"
    assert f"torchinductor_uid-{os.getuid()}" in child(code, tmp_path)


def test_the_cache_is_where_the_user_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cache_root() == tmp_path / "cache" / "onerec-trt"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_root() == tmp_path / ".cache" / "onerec-trt"


@pytest.mark.parametrize("home", ["/proc/nothing", "file"])
def test_a_home_that_cannot_be_written_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str) -> None:
    (tmp_path / "file").touch()
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / home))
    monkeypatch.setattr(dependencies, "_temporary_home", lambda: tmp_path / "temporary")
    if home.startswith("/proc"):
        monkeypatch.setattr(os, "access", lambda *_: False)  # root may do what the modes forbid
    assert cache_root() == tmp_path / "temporary" / ".cache" / "onerec-trt"
