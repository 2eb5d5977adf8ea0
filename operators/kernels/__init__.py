"""GPU kernels of the operators, compiled ahead of time, and the launch programs that carry them into a plan."""
