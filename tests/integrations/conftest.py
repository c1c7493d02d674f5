from __future__ import annotations

import os

# Collected by scripts/test-integrations alone: what they drive is not in AIRI's own environment.
collect_ignore_glob = [] if os.environ.get("AIRI_INTEGRATIONS") else ["test_*.py"]
