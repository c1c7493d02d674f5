"""The ground floor of AIRI: settings, errors, ids, clock, configuration, storage access and processes."""

__version__ = "0.1.0"
