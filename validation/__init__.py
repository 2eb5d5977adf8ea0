"""Parity gates: operators, scores and recommendations against the FP32 model."""
