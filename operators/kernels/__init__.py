"""GPU kernels of the operators, in Triton and Gluon, and how each is launched."""
