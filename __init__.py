"""onerec-trt: from a trained OneRec-V2 checkpoint to a validated TensorRT plan in FP8."""

__version__ = "0.1.0"
