"""The command `sign`: makes keys, and signs plans and exported graphs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from ..core.errors import RecipeError
from ..runtime.signature import new_key, sign, signature_path


class Signed(BaseModel):
    """One signature that was written, and the fingerprint of its key."""

    artifact: str
    signature: str
    key: str


def sign_all(artifacts: Sequence[Path], key: Path | None, fresh_key: Path | None) -> list[Signed]:
    """Sign every artifact with `key`; a `fresh_key` is made first, and signs where no other is given.

    Raises:
        RecipeError: There is no key, or nothing to do.
        ArtifactError: A plan that has not passed its gates, a missing file, or no such key.
        MissingExtraError: The library that signs is not installed.
    """
    if fresh_key is not None:
        new_key(fresh_key)
    key = key or fresh_key
    if key is None:
        raise RecipeError("there is no key to sign with", where="--key", hint="give --key KEY, or make one with --new-key KEY")
    if not artifacts and fresh_key is None:
        raise RecipeError("there is nothing to sign", where="sign", hint="name plans or exported graphs")
    return [Signed(artifact=str(artifact), signature=str(signature_path(artifact)), key=sign(artifact, key).key) for artifact in artifacts]


def table(signed: Sequence[Signed]) -> Table:
    """The signatures for the terminal."""
    shown = Table(box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("signature", "key"):
        shown.add_column(heading, overflow="fold")
    for each in signed:
        shown.add_row(escape(each.signature), each.key)
    return shown
