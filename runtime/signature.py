"""Who vouches for a plan or an exported graph: an Ed25519 signature over the hashes of the files that are loaded.

Hashes alone find accidents; whoever can replace a plan can replace its record. A signature needs a key that this person lacks.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from hashlib import sha256 as digest_of
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from ..core.artifacts import json_object, read_model, sha256, write_json
from ..core.errors import ArtifactError
from ..core.extras import optional
from ..core.records import SIGNATURE_ENDING
from .plan_record import record_path
from .verdict import inspect_with_verdict, verdict_files

PUBLIC_ENDING = ".pub"
_CONTEXT = b"onerec-trt signature 1\n"  # what is signed cannot be mistaken for a message of another program
_SIGN_AGAIN = "sign it again with `onerec-trt sign`, or do not load it"


class Signature(BaseModel):
    """A signature beside what it signs.

    Args:
        sha256: Hashes by what the file is: `plan`, `record` and `verdict` (empty: none); or `graph` and `weights`.
        key: SHA-256 of the public key's 32 bytes.
        signature: Ed25519, in hexadecimal, of `message`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    sha256: dict[str, str]
    key: str
    signature: str

    def message(self) -> bytes:
        """The bytes that are signed: the hashes, with sorted keys."""
        return _CONTEXT + json.dumps(self.sha256, sort_keys=True).encode()


def signature_path(artifact: Path) -> Path:
    """Where the signature of a plan or a graph lies."""
    return artifact.with_name(artifact.stem + SIGNATURE_ENDING)


def new_key(path: Path) -> Path:
    """Make a key: the private one at `path`, readable by its owner alone, and the public one, whose path is given back.

    Raises:
        ArtifactError: A file is there already, or the folder cannot be written.
        MissingExtraError: The library that signs is not installed.
    """
    ed25519, serialization = _library()
    public = path.with_name(path.name + PUBLIC_ENDING)
    key = ed25519.Ed25519PrivateKey.generate()
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    if public.exists():
        raise _already_there(public)
    _write_new(path, private, 0o600)
    _write_new(public, key.public_key().public_bytes(serialization.Encoding.PEM, spki), 0o666)
    return public


def _write_new(path: Path, content: bytes, mode: int) -> None:
    """Write a file that is not there yet, never readable by more than `mode` and the umask allow."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError:
        raise _already_there(path) from None
    with open(descriptor, "wb") as stream:
        stream.write(content)


def _already_there(path: Path) -> ArtifactError:
    return ArtifactError("there is a file already, which could be a key", where=str(path), hint="choose another path, or delete it")


def sign(artifact: Path, key_file: Path) -> Signature:
    """Sign a plan with its record and verdict, or an exported graph with its weights; writes the signature beside it.

    Args:
        artifact: A `.plan` that passed its gates, or a `.onnx` file.
        key_file: A private Ed25519 key in PEM.

    Raises:
        ArtifactError: A plan that has not passed its gates or does not match its record, a missing file, or no such key.
        MissingExtraError: The library that signs is not installed.
    """
    ed25519, serialization = _library()
    key = _loaded(key_file, lambda pem: serialization.load_pem_private_key(pem, None), ed25519.Ed25519PrivateKey, "private")
    if artifact.suffix == ".plan":
        record = inspect_with_verdict(artifact)
        if not record.validated:
            hint = "run `onerec-trt validate --engine tensorrt` on it first: a signature says that the plan was checked"
            raise ArtifactError(f"the plan is not validated: {record.reason}", where=str(artifact), hint=hint)
    unsigned = Signature(sha256=_hashes(artifact, None), key=_fingerprint(key.public_key(), serialization), signature="")
    signed = unsigned.model_copy(update={"signature": key.sign(unsigned.message()).hex()})
    write_json(signature_path(artifact), signed.model_dump(mode="json"))
    return signed


def require_signature(artifact: Path, trusted: Sequence[Path], content: bytes | None = None) -> str:
    """Demand that a trusted key signed a plan or graph as it is now; gives the key's fingerprint.

    Args:
        artifact: A `.plan` or `.onnx` file.
        trusted: Public Ed25519 keys in PEM.
        content: What the caller has read of the plan and is about to use. Default: the file as it is.

    Raises:
        ArtifactError: There is no signature, it is by another key, does not verify, or is of other files; or a key cannot be read.
        MissingExtraError: The library that verifies is not installed.
    """
    ed25519, serialization = _library()
    keys = {}
    for path in trusted:
        key = _loaded(path, serialization.load_pem_public_key, ed25519.Ed25519PublicKey, "public")
        keys[_fingerprint(key, serialization)] = key
    hashes = _hashes(artifact, content)
    signature, where = _signature_of(artifact, hashes)
    if signature.key not in keys:
        known = ", ".join(sorted(keys)) or "none"
        raise ArtifactError(f"it is signed by another key, {signature.key}", where=where, hint=f"keys trusted here: {known}")
    if not _verifies(keys[signature.key], signature):
        raise ArtifactError("the signature is wrong: it was edited, or is of other hashes", where=where, hint=_SIGN_AGAIN)
    changed = sorted(part for part in signature.sha256.keys() | hashes.keys() if signature.sha256.get(part) != hashes.get(part))
    if changed:
        raise ArtifactError(f"what is signed is another {' and '.join(changed)} than lies here", where=where, hint=_SIGN_AGAIN)
    return signature.key


def _hashes(artifact: Path, content: bytes | None) -> dict[str, str]:
    """What a signature covers: everything that is loaded or believed, by what it is."""
    if artifact.suffix == ".onnx":
        return {"graph": _hash(artifact), "weights": _hash(artifact.with_name("weights.data"))}
    plan = _hash(artifact) if content is None else digest_of(content).hexdigest()
    hashes = {"plan": plan, "record": _hash(record_path(artifact))}
    return hashes | {"verdict": ",".join(sorted(map(_hash, verdict_files(artifact, plan))))}


def _signature_of(artifact: Path, hashes: dict[str, str]) -> tuple[Signature, str]:
    """The signature that lies at the artifact's name, or else one in its folder that names its hash."""
    part = "graph" if artifact.suffix == ".onnx" else "plan"
    own = signature_path(artifact)
    others = sorted(artifact.absolute().parent.glob(f"*{SIGNATURE_ENDING}"))
    found = [own] if own.exists() else [path for path in others if _signs(path, part, hashes[part])]
    if not found:
        raise ArtifactError("there is no signature", where=str(artifact), hint="sign it with `onerec-trt sign`, or load it without --trust")
    return read_model(found[0], Signature, what="the signature is malformed", hint=_SIGN_AGAIN), str(found[0])


def _signs(path: Path, part: str, expected: str) -> bool:
    hashes = (json_object(path) or {}).get("sha256")
    return isinstance(hashes, dict) and hashes.get(part) == expected


def _hash(path: Path) -> str:
    if not path.is_file():
        raise ArtifactError("the file is missing", where=str(path), hint="copy the whole folder, or build it again")
    return sha256(path)


def _verifies(key: Any, signature: Signature) -> bool:
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(bytes.fromhex(signature.signature), signature.message())
    except (InvalidSignature, ValueError):
        return False
    return True


def _fingerprint(public: Any, serialization: Any) -> str:
    return digest_of(public.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)).hexdigest()


def _loaded(path: Path, load: Any, kind: type, which: str) -> Any:
    """A key from a PEM file."""
    hint = f"give a {which} Ed25519 key in PEM; `onerec-trt sign --new-key KEY` makes a pair"
    try:
        pem = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"the key cannot be read: {error.strerror}", where=str(path), hint=hint) from None
    unsupported = optional("cryptography.exceptions").UnsupportedAlgorithm
    try:
        key = load(pem)
    except (ValueError, TypeError, unsupported):
        key = None
    if not isinstance(key, kind):
        raise ArtifactError(f"this is no {which} Ed25519 key", where=str(path), hint=hint)
    return key


def _library() -> tuple[Any, Any]:
    """The modules of `cryptography` that hold Ed25519 keys and read them."""
    primitives = "cryptography.hazmat.primitives"
    return optional(f"{primitives}.asymmetric.ed25519"), optional(f"{primitives}.serialization")
