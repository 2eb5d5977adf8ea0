"""FP8 post-training quantisation with NVIDIA ModelOpt, frozen scales, distribution statistics, expert coverage."""
