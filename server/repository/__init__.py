"""Model repositories of Triton Inference Server: versions of a model side by side, and the configuration that says which one is served."""
