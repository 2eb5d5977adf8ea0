"""The command `sign`, and `--trust` of the commands that load what was signed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from onerec_trt.core.artifacts import write_json
from onerec_trt.core.errors import ArtifactError, RecipeError
from onerec_trt.tools.inspection import inspect
from onerec_trt.tools.recommend import recommend
from onerec_trt.tools.signing import sign_all


@pytest.fixture
def graph(world: Path) -> Path:
    return world / "out" / "fp16" / "exported" / "model.onnx"


def test_a_new_key_signs_and_its_public_half_is_demanded(graph: Path, world: Path, tmp_path: Path) -> None:
    (signed,) = sign_all([graph], None, tmp_path / "key")
    trust = [tmp_path / "key.pub"]
    assert Path(signed.signature).is_file()
    assert inspect(graph.parent, trust)["signed_by"] == signed.key
    assert "signed_by" not in inspect(graph.parent)  # nobody asked
    found = recommend(graph, world / "heldout.parquet", tmp_path / "items.parquet", limit=1, trust=trust)
    assert found.requests == 1


def test_what_is_not_signed_by_a_trusted_key_is_not_run(graph: Path, world: Path, tmp_path: Path) -> None:
    sign_all([graph], None, tmp_path / "theirs")
    sign_all([], None, tmp_path / "ours")
    with pytest.raises(ArtifactError, match="signed by another key"):
        recommend(graph, world / "heldout.parquet", tmp_path / "items.parquet", limit=1, trust=[tmp_path / "ours.pub"])
    assert not (tmp_path / "items.parquet").exists()


def test_an_edited_signature_says_nothing(graph: Path, tmp_path: Path) -> None:
    (signed,) = sign_all([graph], None, tmp_path / "key")
    path = Path(signed.signature)
    values: dict[str, Any] = json.loads(path.read_text())
    values["sha256"]["graph"] = "0" * 64
    write_json(path, values)
    with pytest.raises(ArtifactError, match="the signature is wrong"):
        inspect(graph.parent, [tmp_path / "key.pub"])


@pytest.mark.parametrize(("artifacts", "message"), [([Path("a.plan")], "no key to sign with"), ([], "no key to sign with")])
def test_without_a_key_nothing_is_signed(artifacts: list[Path], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        sign_all(artifacts, None, None)


def test_a_key_without_anything_to_sign_is_said(tmp_path: Path) -> None:
    sign_all([], None, tmp_path / "key")
    with pytest.raises(RecipeError, match="nothing to sign"):
        sign_all([], tmp_path / "key", None)
