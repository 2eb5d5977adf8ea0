"""Checks that the artifacts at hand are the ones this recipe makes, before anything is measured on them."""

from __future__ import annotations

from ..core.errors import ArtifactError
from ..core.records import read_record
from ..core.stages import Stage, declare, differences


def require_lineage(*stages: Stage) -> None:
    """Check what lies in the folders of stages against what these stages would be made from now.

    Versions of tools may differ: artifacts are made on one machine and validated on another.

    Raises:
        ArtifactError: A file does not match its record, or a folder was made from other inputs, options or code; names the stage to run.
    """
    records = [read_record(stage.folder) for stage in stages]
    for stage, record in zip(stages, records, strict=True):
        for difference in differences(record, declare(stage)):
            if difference.kind != "tool":
                raise ArtifactError(
                    f"the result of the stage '{record.stage}' was made from another {difference}",
                    where=str(stage.folder),
                    hint=f"run `onerec-trt {stage.name}` with this recipe",
                )
