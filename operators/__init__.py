"""The `onerec` ONNX domain: each operator as PyTorch reference, as ONNX function and, where it has one, as kernel. One file per family."""
