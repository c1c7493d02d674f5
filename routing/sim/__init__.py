"""A simulated inference engine: an engine's physics without a model, and an HTTP server that shows them.

``engine.py`` is the physics alone and runs in virtual or real time; ``python -m routing.sim`` serves it in the
OpenAI dialect with vLLM's metric names. Whatever it says, it says that it is simulated.
"""
