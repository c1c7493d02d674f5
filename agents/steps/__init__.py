"""What a step does: one module a kind of call."""
