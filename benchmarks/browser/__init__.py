"""How the example pages keep up in a real browser."""
