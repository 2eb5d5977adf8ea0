"""Two models with the same weights."""

from __future__ import annotations

import torch
from onerec_trt.models.onerec import OneRec


def assert_same_weights(actual: OneRec, expected: OneRec) -> None:
    assert actual.config == expected.config
    theirs = expected.state_dict()
    assert actual.state_dict().keys() == theirs.keys()
    for name, value in actual.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, theirs[name]), name
