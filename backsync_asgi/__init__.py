"""Backsync."""
