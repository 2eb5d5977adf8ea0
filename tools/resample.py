"""Would the gates say the same of other requests? Judges samples of the requests that a validation recorded; nothing is run."""

from __future__ import annotations

from collections import Counter

import numpy as np

from ..core.errors import ArtifactError
from ..core.recipe import Recipe
from ..core.records import read_record
from ..core.stages import declare, differences
from ..models.checkpoint import open_checkpoint
from ..validation.fp32_reference import heldout_requests, read_reference
from ..validation.judgement import Case, judge
from ..validation.outputs import outputs_file, read_outputs
from ..validation.validate import VALIDATE
from .pipeline import folders_of, reference_job_of, stages_of

_SEED = 20261126  # fixed, so that the same outputs give the same samples


def resample(recipe: Recipe, requests: int, times: int) -> dict[str, int]:
    """How often each gate on outputs failed, over samples with replacement of what ONNX Runtime gave. *Share of valid items* is left out.

    Args:
        recipe: It has been validated.
        requests: Of a sample.
        times: Samples.

    Raises:
        ArtifactError: It has not been validated, or a recipe, requests or FP32's answers are others now.
    """
    folders = folders_of(recipe)
    _require_same_requests(recipe)
    outputs = read_outputs(folders.validated / outputs_file(""))
    case = Case(outputs, read_reference(folders.reference), heldout_requests(reference_job_of(recipe)))
    codebook = open_checkpoint(recipe.checkpoint, recipe.key_map).config.codebook
    rng, failed = np.random.default_rng(_SEED), Counter[str]()
    for _ in range(times):
        sample = case.select(rng.integers(0, len(case.requests), requests))
        gates = judge(sample, recipe.name, recipe.validation, "onnxruntime", "", codebook).gates
        failed.update({gate.name: int(not gate.passed) for gate in gates})
    return dict(failed)


def _require_same_requests(recipe: Recipe) -> None:
    """Refuse outputs of other inputs or options than the recipe has now. Other code may judge them: that is what they are kept for."""
    stage = next(stage for stage in stages_of(recipe) if stage.name == VALIDATE["onnxruntime"])
    for difference in differences(read_record(stage.folder), declare(stage)):
        if difference.kind in ("input", "option"):
            what = f"the recorded outputs of the recipe '{recipe.name}' are of another {difference}"
            raise ArtifactError(what, where=str(stage.folder), hint="run `onerec-trt validate` with this recipe")
