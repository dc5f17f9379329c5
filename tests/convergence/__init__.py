"""That state converges: one set of rules and invariants over the pure core, the ASGI app and a real server."""
