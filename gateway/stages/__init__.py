"""The stages of a call, one file each, in the order of gateway/pipeline.py."""
