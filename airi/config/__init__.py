"""Configuration: the kinds of resource, their loader, the versioned store and the snapshots made of it."""
