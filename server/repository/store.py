"""A repository on disk: versions side by side in folders, one of them served; promotion, rollback, and setting a bad version aside.

Layout: `REPO/MODEL/config.pbtxt` and `REPO/MODEL/NUMBER/`. config.pbtxt is the only thing that says which version is served: it is
written whole or not at all, so that a killed command leaves the repository as it was before or as it is after. Pods in a cluster do not
follow it: `REPO/MODEL/configs/` has a configuration for each version, which the flags of its pods name.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...core.artifacts import atomic_folder, write_text
from ...core.errors import ArtifactError
from ...core.paths import absolute
from .catalogues import Catalogues
from .model_config import CONFIG_FILE, config_file, config_text, promotions
from .version import DESCRIPTION_FILE, VersionDescription, open_version, read_description

ASIDE = "failed-"  # begins the name of a version's folder that is not to be served any more; the server looks at numbers only
WHY_FILE = "why.txt"
_KEPT_PROMOTIONS = 16
_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


class Repository:
    """A model repository of Triton Inference Server.

    Args:
        path: Its folder, which need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = absolute(path)

    def models(self) -> tuple[str, ...]:
        """Names of the models in it.

        Raises:
            ArtifactError: There is none.
        """
        folders = sorted(self.path.iterdir()) if self.path.is_dir() else []
        found = tuple(folder.name for folder in folders if not folder.name.startswith(".") and self.versions(folder.name))
        if not found:
            hint = "write one with `onerec-trt repository PLAN --out REPO`"
            raise ArtifactError("this is no model repository", where=str(self.path), hint=hint)
        return found

    def config_path(self, model: str) -> Path:
        """Where the configuration of a model lies."""
        return self.path / model / CONFIG_FILE

    def version_config_path(self, model: str, version: int) -> Path:
        """Where the configuration of one version lies, with which a server serves it whatever is promoted: a pod's server does."""
        return self.path / model / config_file(version)

    def folder(self, model: str, version: int) -> Path:
        """Where a version of a model lies."""
        return self.path / model / str(version)

    def versions(self, model: str) -> tuple[int, ...]:
        """Numbers of a model's versions, ascending, without those set aside and without folders that somebody else made."""
        return tuple(number for number in self._numbers(model) if (self.folder(model, number) / DESCRIPTION_FILE).is_file())

    def describe(self, model: str, version: int) -> VersionDescription:
        """The description of a version; its files are not looked at.

        Raises:
            ArtifactError: There is no such version.
        """
        return self._own(read_description(self._existing(model, version)), model, version)

    def open(self, model: str, version: int) -> VersionDescription:
        """The description of a version whose files are those that were put there.

        Raises:
            ArtifactError: There is no such version, or a file of it was changed.
        """
        return self._own(open_version(self._existing(model, version)), model, version)

    def promoted(self, model: str) -> tuple[int, ...]:
        """Versions that were promoted and are still there, newest first. The first one is served.

        Raises:
            ArtifactError: None was, or the model's configuration is malformed.
        """
        there = self.versions(model)
        if not there:
            hint = f"its models: {', '.join(self.models())}"
            raise ArtifactError(f"the repository holds no model '{model}'", where=str(self.path), hint=hint)
        found = tuple(version for version in promotions(self.config_path(model)) if version in there)
        if not found:
            hint = "choose a version with `onerec-trt repository --out REPO --promote NUMBER`"
            raise ArtifactError(f"no version of the model '{model}' is served", where=str(self.path / model), hint=hint)
        return found

    @contextmanager
    def new_version(self, model: str) -> Iterator[tuple[int, Path]]:
        """Yield the number and the empty folder of the next version; it appears whole when the block ends well.

        Raises:
            ArtifactError: The name is none that a server takes, or the folder cannot be written.
        """
        if not _MODEL_NAME.fullmatch(model):
            raise ArtifactError("this is no name of a model", where=repr(model), hint="take letters, digits, dots, dashes and underscores")
        with self._locked(model):
            used = [*self._numbers(model), *self._numbers(model, ASIDE), 0]
            version = max(used) + 1
            with atomic_folder(self.folder(model, version)) as folder:
                yield version, folder

    def write_version_config(self, description: VersionDescription) -> None:
        """Write what serves one version, whatever is promoted."""
        path = self.version_config_path(description.name, description.version)
        with self._locked(description.name):
            path.parent.mkdir(exist_ok=True)
            write_text(path, config_text(description, [description.version]))

    def promote(self, model: str, version: int) -> None:
        """Serve this version from the next load on. Earlier ones stay where they are.

        Raises:
            ArtifactError: There is no such version, or a file of it was changed.
        """
        description = self.open(model, version)
        with self._locked(model):
            earlier = [other for other in self._earlier(model) if other != version]
            self._write_config(description, [version, *earlier])

    def rollback(self, model: str) -> int:
        """Serve the version again that was served before; its number.

        Raises:
            ArtifactError: There is none, or a file of it was changed.
        """
        promoted = self.promoted(model)
        if len(promoted) < 2:
            hint = f"it has the versions {', '.join(map(str, self.versions(model)))}; choose one with --promote"
            raise ArtifactError(f"no version of '{model}' was served before version {promoted[0]}", where=str(self.path / model), hint=hint)
        description = self.open(model, promoted[1])
        with self._locked(model):
            self._write_config(description, promoted[1:])
        return promoted[1]

    def catalogues(self, model: str) -> Catalogues:
        """The catalogues of a model."""
        return Catalogues(self.path / model)

    def add_catalogue(self, model: str, index: Path) -> str:
        """Serve a catalogue from now on, with the version that is served; a running server loads it by itself. Its digest.

        Raises:
            ArtifactError: No version is served, its graph does not take this catalogue, or the index is damaged.
        """
        io = self.describe(model, self.promoted(model)[0]).io
        with self._locked(model):
            return self.catalogues(model).add(index, io)

    def rollback_catalogue(self, model: str) -> str:
        """Serve the catalogue again that was served before; its digest.

        Raises:
            ArtifactError: There is none, its file is damaged, or no version is served whose graph takes it.
        """
        io = self.describe(model, self.promoted(model)[0]).io
        with self._locked(model):
            return self.catalogues(model).rollback(io)

    def set_aside(self, model: str, version: int, why: str) -> int | None:
        """Take a version that cannot be served out of the server's sight, and fall back to the one served before.

        Returns:
            The version that is served now; None where no other was promoted before: then nothing is changed.

        Raises:
            ArtifactError: The repository is read-only.
        """
        with self._locked(model):
            remaining = [other for other in self._earlier(model) if other != version]
            description = next(filter(None, (self._intact(model, earlier) for earlier in remaining)), None)
            if description is None:
                return None
            aside = self.path / model / f"{ASIDE}{version}"
            try:
                os.replace(self.folder(model, version), aside)
            except OSError as error:
                hint = f"promote version {description.version} where the repository can be written"
                raise ArtifactError(f"{why}\nit cannot be set aside: {error.strerror}", where=str(aside), hint=hint) from None
            write_text(aside / WHY_FILE, why + "\n")
            self._write_config(description, [description.version, *(other for other in remaining if other != description.version)])
        return description.version

    def _intact(self, model: str, version: int) -> VersionDescription | None:
        """The description of a version; None where a file of it was changed."""
        try:
            return self.open(model, version)
        except ArtifactError:
            return None

    def _write_config(self, description: VersionDescription, promoted: list[int] | tuple[int, ...]) -> None:
        write_text(self.config_path(description.name), config_text(description, promoted[:_KEPT_PROMOTIONS]))

    def _earlier(self, model: str) -> tuple[int, ...]:
        """What config.pbtxt remembers; nothing where there is none, or it was replaced by something else."""
        try:
            return self.promoted(model)
        except ArtifactError:
            return ()

    def _own(self, description: VersionDescription, model: str, version: int) -> VersionDescription:
        """A description that is of the folder it lies in: it says what is written where."""
        if (description.name, description.version) != (model, version):
            what = f"the description is of version {description.version} of '{description.name}'"
            raise ArtifactError(what, where=str(self.folder(model, version)), hint="add the model to the repository again")
        return description

    def _existing(self, model: str, version: int) -> Path:
        folder = self.folder(model, version)
        if not folder.is_dir():
            known = ", ".join(map(str, self.versions(model))) or "none"
            raise ArtifactError(f"the model '{model}' has no version {version}", where=str(self.path), hint=f"its versions: {known}")
        return folder

    def _numbers(self, model: str, prefix: str = "") -> tuple[int, ...]:
        """Numbers in the names of a model's folders that begin so, ascending. A number is given once, to versions set aside, too."""
        folder = self.path / model
        names = [each.name.removeprefix(prefix) for each in folder.glob(f"{prefix}*") if each.is_dir()] if folder.is_dir() else []
        return tuple(sorted(int(name) for name in names if name.isdecimal()))

    @contextmanager
    def _locked(self, model: str) -> Iterator[None]:
        """No other command changes the repository meanwhile. The lock is on its folder, and ends with its process."""
        (self.path / model).mkdir(parents=True, exist_ok=True)
        handle = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)
