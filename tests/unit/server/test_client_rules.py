"""Rules on their way from a client to the server: nothing is lost, and requests of different rules can share a batch."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import DTypeLike
from onerec_trt.core.errors import RequestError
from onerec_trt.runtime.item_rules import OPEN, ItemRules
from onerec_trt.server.client_rules import rule_inputs
from onerec_trt.server.python_backend.item_requests import rules_of
from onerec_trt.server.repository.served_io import EXCLUDED_ITEMS, RULE_INPUTS

BEAMS = 40
RULES = [OPEN, ItemRules(excluded=(5, 3, 2**40)), ItemRules(required=1 << 63), ItemRules(forbidden=6, beams=7), ItemRules(excluded=(9,))]


@pytest.mark.parametrize("rules", [*([each] for each in RULES), RULES])
def test_the_server_reads_what_the_client_wrote(rules: list[ItemRules]) -> None:
    read = rules_of(rule_inputs(rules, BEAMS), len(rules), "onerec")
    for mine, theirs in zip(rules, read, strict=True):
        assert sorted(mine.excluded) == list(theirs.excluded)
        assert (mine.required, mine.forbidden, mine.beams or BEAMS) == (theirs.required, theirs.forbidden, theirs.beams)


@pytest.mark.parametrize(("dtype", "said"), [("int32", "int32"), (np.dtype("int64").newbyteorder(), ".i8")], ids=["width", "byte order"])
def test_ids_of_another_type_are_refused(dtype: DTypeLike, said: str) -> None:
    inputs = rule_inputs([OPEN], BEAMS)
    with pytest.raises(RequestError, match=f"'{EXCLUDED_ITEMS}' is {said}, the model takes int64"):
        rules_of({**inputs, EXCLUDED_ITEMS: inputs[EXCLUDED_ITEMS].astype(dtype)}, 1, "onerec")


@pytest.mark.parametrize("rules", RULES)
def test_every_request_brings_the_same_inputs(rules: ItemRules) -> None:
    """The server's batcher puts no two requests together of which one leaves an optional input out."""
    inputs = rule_inputs([rules], BEAMS)
    assert inputs.keys() == RULE_INPUTS.keys()
    assert all(array.dtype == np.dtype(RULE_INPUTS[name].dtype) and array.size for name, array in inputs.items())


IMPOSSIBLE = {
    "ids that are no integers": (ItemRules(excluded=(1.5,)), "what is excluded are no item ids"),  # type: ignore[arg-type]
    "ids beyond 64 bits": (ItemRules(excluded=(2**63,)), "what is excluded are no item ids"),
    "negative bits": (ItemRules(required=-1), "category bits of context 1 are no integer of 64 bits"),
    "bits beyond 64": (ItemRules(forbidden=1 << 64), "category bits of context 1 are no integer of 64 bits"),
    "bits that are no integer": (ItemRules(required=1.5), "category bits of context 1 are no integer of 64 bits"),  # type: ignore[arg-type]
    "beams that are no integer": (ItemRules(beams=1.5), r"context 1 asks for 1\.5 beams"),  # type: ignore[arg-type]
    "beams beyond 32 bits": (ItemRules(beams=1 << 31), "context 1 asks for 2147483648 beams"),
}


@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_rules_that_cannot_be_sent_as_they_are_are_refused_and_not_rounded(what: str) -> None:
    rules, said = IMPOSSIBLE[what]
    with pytest.raises(RequestError, match=said):
        rule_inputs([OPEN, rules], BEAMS)
