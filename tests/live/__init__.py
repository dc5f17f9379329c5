"""Tests of the database hooks."""
