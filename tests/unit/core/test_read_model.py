"""JSON files that are read as a model: what is wrong in one is said with its place, and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
from onerec_trt.core.artifacts import read_model
from onerec_trt.core.errors import ArtifactError
from pydantic import BaseModel


class Inner(BaseModel):
    size: int


class Outer(BaseModel):
    inner: Inner


def test_a_file_that_fits_is_the_model(tmp_path: Path) -> None:
    (path := tmp_path / "a.json").write_text('{"inner": {"size": 3}}')
    assert read_model(path, Outer, hint="again") == Outer(inner=Inner(size=3))


@pytest.mark.parametrize("content", ['{"inner": {"size": "x"}}', '{"inner": {}}', "[]"])
def test_one_that_does_not_fit_names_the_place_and_what_to_do(tmp_path: Path, content: str) -> None:
    (path := tmp_path / "a.json").write_text(content)
    with pytest.raises(ArtifactError) as caught:
        read_model(path, Outer, what="the thing is malformed", hint="make it again")
    assert caught.value.what.startswith("the thing is malformed: " + ("inner.size" if "inner" in content else ""))
    assert (caught.value.where, caught.value.hint) == (str(path), "make it again")


@pytest.mark.parametrize("content", [None, "{", '{"inner": {"size": 1}, "inner": {"size": 1}}'])
def test_what_is_no_json_is_an_error_of_the_same_type(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "a.json").write_text(content)
    with pytest.raises(ArtifactError, match=r"not found|not valid JSON"):
        read_model(tmp_path / "a.json", Outer, hint="again")
