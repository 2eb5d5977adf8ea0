"""A signature holds plan, record and verdict together, by a key that is trusted; anything else is refused."""

from __future__ import annotations

import json
import shutil
import stat
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from onerec_trt.core.artifacts import write_json
from onerec_trt.core.errors import ArtifactError, MissingExtraError
from onerec_trt.runtime import loaded_plan
from onerec_trt.runtime.plan_record import record_path
from onerec_trt.runtime.signature import new_key, require_signature, sign, signature_path
from onerec_trt.runtime.verdict import verdict_path

from .plan_files import prove, write_plan


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    """A private key and its public one."""
    folder = tmp_path / "keys"
    folder.mkdir()
    return folder / "ours", new_key(folder / "ours")


@pytest.fixture
def plan(tmp_path: Path, keys: tuple[Path, Path]) -> Path:
    """A signed one, in a folder of its own."""
    folder = tmp_path / "plans"
    folder.mkdir()
    plan = write_plan(folder)
    prove(plan)
    sign(plan, keys[0])
    return plan


@pytest.fixture
def graph(tmp_path: Path, keys: tuple[Path, Path]) -> Path:
    folder = tmp_path / "exported"
    folder.mkdir()
    (folder / "weights.data").write_bytes(b"weights")
    (folder / "model.onnx").write_bytes(b"graph")
    sign(folder / "model.onnx", keys[0])
    return folder / "model.onnx"


def test_only_the_owner_reads_a_private_key_and_no_key_is_replaced(keys: tuple[Path, Path]) -> None:
    private, public = keys
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    before = private.read_bytes(), public.read_bytes()
    with pytest.raises(ArtifactError, match="could be a key"):
        new_key(private)
    private.unlink()
    with pytest.raises(ArtifactError, match="could be a key"):
        new_key(private)
    assert not private.exists()
    assert public.read_bytes() == before[1]


def test_what_was_signed_is_accepted_wherever_it_is_copied(plan: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    signer = require_signature(plan, [keys[1]])
    there = tmp_path / "model_repository" / "1"
    there.mkdir(parents=True)
    names = {
        plan: "model.plan",
        record_path(plan): "model.json",
        verdict_path(plan): "x.verdict.json",
        signature_path(plan): "y.signature.json",
    }
    for source, name in names.items():
        shutil.copy(source, there / name)
    assert require_signature(there / "model.plan", [keys[1]]) == signer


def test_the_graph_is_signed_with_its_weights(graph: Path, keys: tuple[Path, Path]) -> None:
    require_signature(graph, [keys[1]])
    graph.with_name("weights.data").write_bytes(b"others")
    with pytest.raises(ArtifactError, match="another weights than"):
        require_signature(graph, [keys[1]])


def _edit(path: Path, **changes: Any) -> None:
    write_json(path, json.loads(path.read_text()) | changes)


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("record", lambda plan: _edit(record_path(plan), plugins={"code": "mine"})),
        ("verdict", lambda plan: verdict_path(plan).unlink()),
        ("verdict", lambda plan: shutil.copy(verdict_path(plan), plan.with_name("second.verdict.json"))),
        ("verdict", lambda plan: _edit(verdict_path(plan), gates=[])),
        ("plan", lambda plan: plan.write_bytes(b"b plan")),
    ],
)
def test_what_was_changed_after_it_was_signed_is_refused_by_name(plan: Path, keys: tuple[Path, Path], part: str, change: Any) -> None:
    change(plan)
    with pytest.raises(ArtifactError, match=f"another .*{part}.* than lies here"):
        require_signature(plan, [keys[1]])


def test_a_forger_who_computes_all_hashes_needs_the_key(plan: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    plan.unlink()
    forged = write_plan(plan.parent, b"evil plan")
    prove(forged)
    signature = json.loads(signature_path(plan).read_text())
    new_key(tmp_path / "theirs")
    sign(forged, tmp_path / "theirs")
    with pytest.raises(ArtifactError, match="signed by another key") as caught:
        require_signature(forged, [keys[1]])
    assert signature["key"] in caught.value.hint
    _edit(signature_path(forged), key=signature["key"], signature=signature["signature"])
    with pytest.raises(ArtifactError, match="the signature is wrong"):
        require_signature(forged, [keys[1]])


@pytest.mark.parametrize(
    ("content", "message"),
    [("{}", "malformed: sha256"), ("[1]", "malformed"), ('{"sha256": {}, "key": "k", "signature": "xyz"}', "another key"), ("no", "JSON")],
)
def test_a_broken_signature_is_a_typed_error(plan: Path, keys: tuple[Path, Path], content: str, message: str) -> None:
    signature_path(plan).write_text(content)
    with pytest.raises(ArtifactError, match=message):
        require_signature(plan, [keys[1]])


def test_no_signature_is_no_signature(plan: Path, keys: tuple[Path, Path]) -> None:
    signature_path(plan).unlink()
    with pytest.raises(ArtifactError, match="there is no signature"):
        require_signature(plan, [keys[1]])


def test_a_plan_that_no_gate_saw_is_not_signed(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    plan = write_plan(tmp_path)
    with pytest.raises(ArtifactError, match=r"not validated: .* the gates have not run"):
        sign(plan, keys[0])
    assert not signature_path(plan).exists()


@pytest.mark.parametrize("content", [b"", b"ssh-ed25519 AAAA", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_what_is_no_key_is_said(plan: Path, graph: Path, tmp_path: Path, content: bytes) -> None:
    key = tmp_path / "key"
    key.write_bytes(content)
    with pytest.raises(ArtifactError, match="no public Ed25519 key"):
        require_signature(plan, [key])
    with pytest.raises(ArtifactError, match="no private Ed25519 key"):
        sign(graph, key)


def test_keys_of_the_wrong_half_and_missing_ones_are_said(plan: Path, graph: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    private, public = keys
    with pytest.raises(ArtifactError, match="no public Ed25519 key"):
        require_signature(plan, [private])
    with pytest.raises(ArtifactError, match="no private Ed25519 key"):
        sign(graph, public)
    with pytest.raises(ArtifactError, match="cannot be read"):
        require_signature(plan, [tmp_path / "missing.pub"])


def test_a_plan_loads_only_when_its_bytes_are_signed(plan: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused before TensorRT sees it: its plugins are code."""
    loaded: list[bytes] = []
    monkeypatch.setattr(loaded_plan, "this_machine", lambda target: None)
    monkeypatch.setattr(loaded_plan, "preflight", lambda *_: [])
    monkeypatch.setattr(loaded_plan, "load", lambda target: None)
    monkeypatch.setattr(loaded_plan.torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(loaded_plan, "require_contract", lambda *_: None)
    monkeypatch.setattr(
        loaded_plan, "Engine", lambda bindings, content, *_, **__: loaded.append(content) or SimpleNamespace(inputs=(), outputs=())
    )
    loaded_plan.load_plan(plan, [keys[1]])
    assert loaded == [plan.read_bytes()]
    signature_path(plan).unlink()
    with pytest.raises(ArtifactError, match="no signature"):
        loaded_plan.load_plan(plan, [keys[1]])
    assert len(loaded) == 1
    loaded_plan.load_plan(plan)  # nobody asked for one


def test_without_the_library_the_extra_is_named(plan: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.startswith("cryptography")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(MissingExtraError, match="cryptography") as caught:
        require_signature(plan, [keys[1]])
    assert "onerec-trt[server]" in caught.value.hint
