"""Parts that are servers of their own (Redis), found and started on one machine."""
