"""The benchmark of whole models: plans against PyTorch on the same random weights, and against the physical limit."""
