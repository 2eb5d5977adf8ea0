"""A small plan that follows a catalogue: for the tests of its runner and of its server."""

from __future__ import annotations

from pathlib import Path

from onerec_trt.builders.stage import build_stage
from onerec_trt.calibration.random_checkpoint import random_quantized_checkpoint
from onerec_trt.core.recipe import BuildOptions, ExportOptions
from onerec_trt.core.stages import run_stage
from onerec_trt.export.stage import export_stage
from onerec_trt.models.config import parse_config

BEAM, CODEBOOK, BATCH, CONTEXT, CAPACITY, EXCLUDED, CLASSES = 16, 256, 8, 32, 4000, 64, 80
LENGTHS = (4, 8, CONTEXT - 12)  # of a context's pathways
CONFIG = parse_config(
    {"d_model": 256, "n_layers": 2, "n_heads": 2, "d_head": 128, "embed_dim": 16, "codebook": CODEBOOK, "ffn_hidden": 512}
)
DRIFT_NAT = 5e-3  # of a semantic ID's score: two FP16 engines of two layers, or two batch sizes of one


def export(root: Path) -> Path:
    """The folder of the exported graph, in FP16, with random weights."""
    random_quantized_checkpoint(CONFIG, "fp16", root / "quantized", 0)
    sizes = {"item_capacity": CAPACITY, "max_excluded": EXCLUDED, "category_classes": CLASSES}
    run_stage(export_stage(ExportOptions(beam=(BEAM,) * 3, items="catalogue", **sizes), root / "quantized", root / "exported"))
    return root / "exported"


def build(exported: Path, plans: Path, *, plugins: bool = True) -> Path:
    """The plan, for batches of up to BATCH requests and contexts of up to CONTEXT tokens."""
    profile = {"batch": [1, BATCH, BATCH], "context": [2, CONTEXT, CONTEXT]}
    options = BuildOptions.model_validate({"target": "tensorrt", "profiles": [profile], "plugins": plugins})
    run_stage(build_stage(options, "fp16", exported, plans, forms=("serving",)))
    return next(plans.glob("*.plan"))
