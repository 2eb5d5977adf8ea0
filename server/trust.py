"""Whose signatures a server demands: public keys that whoever starts it names, never the repository, which they protect against."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..runtime.signature import require_signature
from .repository.version import VersionDescription

VARIABLE = "ONEREC_TRT_TRUST"  # of the environment in which the server starts its Python backend


def trust_environment(keys: Sequence[Path]) -> dict[str, str]:
    """What carries the keys to the Python backend; nothing where no signature is asked for."""
    return {VARIABLE: os.pathsep.join(str(key.absolute()) for key in keys)} if keys else {}


def trusted_keys(environment: Mapping[str, str]) -> tuple[Path, ...]:
    """The keys that an environment carries."""
    return tuple(Path(key) for key in environment.get(VARIABLE, "").split(os.pathsep) if key)


def require_trusted(folder: Path, description: VersionDescription, keys: Sequence[Path]) -> None:
    """Demand that a trusted key signed the model of a version, where keys are given.

    Raises:
        ArtifactError: None did, or the model was changed since.
    """
    if keys:
        require_signature(folder / description.model_file, keys)
