"""Every name of docs/api.md can be imported and is documented; the page has every typed error and every name of `testing`."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import pytest
from onerec_trt import testing
from onerec_trt.core import errors

NAMES = re.findall(r"`(onerec_trt\.[\w.]+)`", (Path(__file__).parents[2] / "docs" / "api.md").read_text())


@pytest.mark.parametrize("name", sorted(set(NAMES)))
def test_a_public_name_can_be_imported_and_has_a_docstring(name: str) -> None:
    module, _, attribute = name.rpartition(".")
    thing = getattr(importlib.import_module(module), attribute)
    assert len(inspect.getdoc(thing) or "") > 20
    if inspect.isclass(thing):
        methods = (getattr(thing, method) for method in vars(thing) if not method.startswith("_"))
        assert all(inspect.getdoc(method) for method in methods if inspect.isfunction(method)), name


def test_all_typed_errors_and_all_of_testing_are_public() -> None:
    kinds = {name for name, kind in vars(errors).items() if inspect.isclass(kind) and issubclass(kind, errors.OnerecTrtError)}
    assert {f"{errors.__name__}.{name}" for name in kinds} <= set(NAMES)
    assert {f"{testing.__name__}.{name}" for name in testing.__all__} <= set(NAMES)
