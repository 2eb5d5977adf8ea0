"""onerec-trt: from a trained OneRec-V2 checkpoint to a validated TensorRT plan in FP8."""

from .core.dependencies import set_dependency_defaults

__version__ = "0.1.0"

set_dependency_defaults()
