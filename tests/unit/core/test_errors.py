"""Errors say what, where and what to do, and survive the way back from a child process."""

from __future__ import annotations

import pickle

import pytest
from onerec_trt.core.errors import CheckpointError, GateError, OnerecTrtError, RequestError


def test_the_text_has_what_where_and_hint() -> None:
    assert str(RequestError("it is empty", where="request 7", hint="drop it")) == "it is empty\n  where: request 7\n  to do: drop it"
    assert str(RequestError("it is empty")) == "it is empty"


@pytest.mark.parametrize("kind", [OnerecTrtError, *OnerecTrtError.__subclasses__()])
def test_every_kind_survives_pickling(kind: type[OnerecTrtError]) -> None:
    copy = pickle.loads(pickle.dumps(kind("what", where="where", hint="hint")))
    assert (type(copy), copy.what, copy.where, copy.hint) == (kind, "what", "where", "hint")


@pytest.mark.parametrize("kind", [OnerecTrtError, *OnerecTrtError.__subclasses__()])
def test_no_error_exits_with_zero(kind: type[OnerecTrtError]) -> None:
    assert kind.exit_code > 0


def test_a_failed_gate_can_be_told_from_bad_input() -> None:
    assert GateError.exit_code != CheckpointError.exit_code
