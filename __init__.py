"""onerec-trt: from a trained OneRec-V2 checkpoint to a TensorRT plan in FP8 that is proven right."""

__version__ = "0.1.0"
