"""Performance figures: self-contained, on loopback, with their method; see docs/performance.md."""
