"""The dashboard: server-rendered pages over the same questions as the public JSON API."""

from gateway.control.ui.routes import router

__all__ = ["router"]
