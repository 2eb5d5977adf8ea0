"""What loads and runs a plan: TensorRT through one module, execution slots, CUDA graphs, records and verdicts."""
