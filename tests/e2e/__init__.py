"""Tests that see Backsync as people do: the examples and the client in a real browser."""
