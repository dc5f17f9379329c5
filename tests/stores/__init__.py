"""Tests of the stores: one contract suite over all of them, and what each promises beside it."""
