"""How the dialects of upstreams are spoken. The gateway sees one form: OpenAI's."""
