"""The control plane: everything that is not a model call, in one FastAPI application and a few patient threads."""
