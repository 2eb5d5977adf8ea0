"""Running what was built, and proving it right: reference runner, parity gates."""
