"""Requests of a file in the form that perf_analyzer reads."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np

from ...core.artifacts import write_json
from ...core.graph_io import Role
from ...models.requests import Requests, read_contexts
from ...server.repository.limits import longest_context
from ...server.repository.store import Repository
from ...server.repository.version import VersionDescription
from ..outputs import require_own_json


def write_inputs(repository: Path, model: str, requests: Path, out: Path, limit: int | None) -> int:
    """Write one entry for each request, with shapes as the served version of a model wants them; gives their number.

    The form is that of perf_analyzer's docs/input_data.md, "Real Input Data": `content` beside `shape`, here in base64, row-major and
    little-endian, the only form in which it takes FP16. Shapes leave the batch out, which its option `-b` adds. Optional inputs may be
    left out.

    Raises:
        ArtifactError: This is no repository, it serves no such model, or `out` is another kind of file.
        RequestError: A request is malformed, or longer than the model takes.
    """
    require_own_json(out, ("data",))
    store = Repository(repository)
    version = store.describe(model, store.promoted(model)[0])
    width = version.io.tensor(Role.CONTEXT_FEATURES).dims[-1]
    chosen = read_contexts(requests, width, max_context=longest_context(version.limits), limit=limit)
    write_json(out, {"data": [_entry(version, chosen, row) for row in range(len(chosen))]})
    return len(chosen)


def _entry(version: VersionDescription, requests: Requests, row: int) -> dict[str, Any]:
    batch = requests.batch([row])
    features_SF = batch.features_BSF[0].half().numpy()
    tokens = next((bucket for bucket in version.context_buckets if bucket >= len(features_SF)), len(features_SF))
    features_SF = np.pad(features_SF, [(0, tokens - len(features_SF)), (0, 0)])
    arrays = {Role.CONTEXT_FEATURES: features_SF, Role.PATHWAY_LENGTHS: batch.lengths_B3[0].numpy()}
    return {
        version.io.name(role): {"content": {"b64": base64.b64encode(array.tobytes()).decode()}, "shape": list(array.shape)}
        for role, array in arrays.items()
    }
