"""Training: a pure step, its state, and one linear loop around it."""
