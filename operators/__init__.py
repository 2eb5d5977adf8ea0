"""The onerec ONNX domain: each operator stated as torch, as ONNX function, later as kernel; one file per operator."""
