"""Starting Triton Inference Server the safe way, and watching over it."""
