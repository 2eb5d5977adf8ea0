"""From one ONNX file to plans: TensorRT-RTX builds without a GPU."""
