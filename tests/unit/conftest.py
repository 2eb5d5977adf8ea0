"""Holds a stand-in for a class of TensorRT against the recorded APIs of both ends of the supported range."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parents[1] / "golden"


def hold_against_record(stand_in: type, name: str, extra: frozenset[str] = frozenset()) -> None:
    """Same members under the same parameter names, and no room for other attributes.

    Args:
        stand_in: A class of a test.
        name: TensorRT's class that it stands for.
        extra: Members of its own, which the test reads.
    """
    assert stand_in.__dictoffset__ == 0, f"{name} takes attributes that TensorRT does not know: give it __slots__"
    members = {member: value for member, value in vars(stand_in).items() if not member.startswith("_") and member not in extra}
    for path in sorted(GOLDEN.glob("tensorrt-*.json")):
        recorded = json.loads(path.read_text())["classes"][name]
        for member, value in members.items():
            assert member in recorded, f"{name} of {path.stem} has no {member}"
            if inspect.isfunction(value) and (signature := recorded[member]):
                assert list(inspect.signature(value).parameters) == parameters_of(signature), f"{name}.{member} of {path.stem}"


def parameters_of(signature: str) -> list[str]:
    """Names in pybind11's `name(self: Kind, flag: int = 0) -> Kind`."""
    inside = signature[signature.index("(") + 1 : signature.index(") ->")]
    return re.findall(r"(?:^|, )(\w+): ", inside)


@pytest.fixture(scope="session")
def stands_for() -> Callable[..., None]:
    """Checks a stand-in against the record: `stands_for(FakeContext, "IExecutionContext")`."""
    return hold_against_record
