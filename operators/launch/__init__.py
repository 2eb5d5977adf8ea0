"""Launch programs: what they are, how kernels are compiled and encoded, and how PyTorch tensors run them."""
