"""From one ONNX file to plans: of TensorRT-RTX without a GPU, of TensorRT for the GPU in the machine."""
