"""Named passes that turn a chain of operators into one fused operator, before kernels replace operators."""
