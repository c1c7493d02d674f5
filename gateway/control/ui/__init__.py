"""The dashboard: server-rendered pages over the same questions as the public JSON API."""
