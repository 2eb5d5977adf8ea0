"""GPU kernels of the operators, compiled ahead of time, and their launch programs."""
