"""Writes the manifests of a model in a repository: one file for plain Kubernetes, one for KServe."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ...core.artifacts import write_text
from ...core.errors import ArtifactError
from ...core.extras import optional
from ...core.ownership import require_own_file
from ..repository.store import Repository
from ..repository.version import VersionDescription
from .cluster import cluster_manifests
from .kserve import kserve_manifests
from .options import ClusterOptions
from .pod import Manifest

_FIRST_LINE = "# Written by `onerec-trt manifests`; changes are lost when it is written again."
KUBERNETES_FILE, KSERVE_FILE = "kubernetes.yaml", "kserve.yaml"


def write_manifests(
    repository: Path, model: str | None, options: ClusterOptions, out: Path, canary: tuple[int, int] | None = None
) -> list[Path]:
    """Write `kubernetes.yaml` and `kserve.yaml` for the version of a model that its repository serves.

    Args:
        repository: The model repository.
        model: Its name. Default: the only one there.
        options: Choices of whoever runs the cluster.
        out: The folder to write to.
        canary: For KServe: number of a newer version, and the percent of requests it gets.

    Raises:
        ArtifactError: There is no such model or version, a file was changed, or a file that is not ours would be replaced.
        RecipeError: A name or number that the cluster cannot take.
        MissingExtraError: PyYAML is not installed.
    """
    store = Repository(repository)
    name = model or _only_model(store)
    version = _opened(store, name, store.promoted(name)[0])
    newer = None if canary is None else (_opened(store, name, canary[0]), canary[1])
    contents = {KUBERNETES_FILE: cluster_manifests(version, options), KSERVE_FILE: kserve_manifests(version, options, newer)}
    paths = [out / file for file in contents]
    for path in paths:
        require_own_file(path, partial(_begins_as_ours, path), "one that `onerec-trt manifests` wrote")
    for path, manifests in zip(paths, contents.values(), strict=True):
        write_text(path, text(manifests, version))
    return paths


def text(manifests: Sequence[Manifest], version: VersionDescription) -> str:
    """Manifests as YAML documents, headed by what they were made from."""
    yaml: Any = optional("yaml")
    state = "validated" if version.validated else f"not validated: {version.reason}"
    head = f"{_FIRST_LINE}\n# {version.name} version {version.version}, {version.model_file} {version.model_sha256}, {state}\n"
    return head + str(yaml.safe_dump_all(manifests, sort_keys=False, explicit_start=True, width=140))


def _opened(store: Repository, model: str, version: int) -> VersionDescription:
    """A version whose configuration is there: without it, a pod's server would serve the promoted version in its place."""
    if not (path := store.version_config_path(model, version)).is_file():
        raise ArtifactError(f"version {version} has no configuration of its own", where=str(path), hint="add the version again")
    return store.open(model, version)


def _only_model(store: Repository) -> str:
    models = store.models()
    if len(models) > 1:
        raise ArtifactError(f"the repository holds {len(models)} models", where=str(store.path), hint=f"--model: {', '.join(models)}")
    return models[0]


def _begins_as_ours(path: Path) -> bool:
    return path.read_text(encoding="utf-8", errors="replace").startswith(_FIRST_LINE)
