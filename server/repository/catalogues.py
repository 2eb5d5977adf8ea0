"""The catalogues of a model in a repository, apart from its versions: a file for each, and one that says which is served.

Layout: `REPO/MODEL/catalogues/DIGEST.index` and `REPO/MODEL/catalogues/served.json`. The latter is written whole or not at all. A
running server looks at it by itself, so that a new catalogue needs no new version and no restart.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ...core.artifacts import atomic_file, write_json
from ...core.errors import ArtifactError, first_problem
from ...core.graph_io import GraphIO
from ...runtime.item_index import ItemIndex

FOLDER, SERVED_FILE, SUFFIX = "catalogues", "served.json", ".index"
_KEPT = 4  # catalogues that one can go back to
_HINT = "add one with `onerec-trt repository --out REPO --catalogue ITEMS.index`"


class Served(BaseModel):
    """Digests of the catalogues that were served, newest first. The first one is served."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    digests: tuple[str, ...] = Field(min_length=1)


class Catalogues:
    """Those of one model. Whoever changes them holds the repository's lock.

    Args:
        model: The model's folder.
    """

    def __init__(self, model: Path) -> None:
        self.folder = model / FOLDER

    @property
    def served_path(self) -> Path:
        """The file that says which one is served."""
        return self.folder / SERVED_FILE

    def path(self, digest: str) -> Path:
        """Where a catalogue lies."""
        return self.folder / f"{digest}{SUFFIX}"

    def served(self) -> tuple[str, ...]:
        """Digests of those that were served, newest first. Empty where there is none.

        Raises:
            ArtifactError: What says so is malformed.
        """
        try:
            content = self.served_path.read_bytes()
        except FileNotFoundError:
            return ()
        return parse_served(content, self.served_path)

    def add(self, index: Path, io: GraphIO) -> str:
        """Copy an index here and serve it; gives its digest.

        Raises:
            ArtifactError: It is damaged or no index, or the graph does not take it. Nothing is changed.
        """
        loaded = ItemIndex.load(index)
        loaded.require_fits(io)
        earlier = [digest for digest in self.served() if digest != loaded.digest]
        with atomic_file(self.path(loaded.digest)) as temporary:
            shutil.copyfile(index, temporary)
        self.load(loaded.digest)  # the copy is whole, and of the index that was checked
        self._write((loaded.digest, *earlier[:_KEPT]))
        return loaded.digest

    def rollback(self, io: GraphIO) -> str:
        """Serve the catalogue again that was served before; its digest.

        Raises:
            ArtifactError: There is none, its file is damaged or of another one, or the graph does not take it. Nothing is changed.
        """
        served = self.served()
        if len(served) < 2:
            raise ArtifactError("no catalogue was served before", where=str(self.folder), hint=_HINT)
        self.load(served[1]).require_fits(io)
        self._write(served[1:])
        return served[1]

    def load(self, digest: str) -> ItemIndex:
        """A catalogue in memory.

        Raises:
            ArtifactError: Its file is missing, damaged, or holds another one.
        """
        index = ItemIndex.load(path := self.path(digest))
        if index.digest != digest:
            raise ArtifactError("the file holds another catalogue than its name says", where=str(path), hint="add the catalogue again")
        return index

    def _write(self, digests: tuple[str, ...]) -> None:
        """Say which one is served, and forget what nobody can go back to; who still serves such a file has it open."""
        write_json(self.served_path, Served(digests=digests).model_dump(mode="json"))
        for path in self.folder.glob(f"*{SUFFIX}"):
            if path.stem not in digests:
                path.unlink()


def parse_served(content: bytes, where: Path) -> tuple[str, ...]:
    """The digests that `served.json` holds.

    Raises:
        ArtifactError: It is malformed.
    """
    try:
        return Served.model_validate_json(content).digests
    except ValidationError as error:
        raise ArtifactError(f"it is not said which catalogue is served: {first_problem(error)}", where=str(where), hint=_HINT) from None
