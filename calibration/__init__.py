"""FP8 post-training quantization with NVIDIA ModelOpt, quantized scales, distribution statistics, expert coverage."""
