"""The packed model written in operators, and the ONNX file made from it."""
