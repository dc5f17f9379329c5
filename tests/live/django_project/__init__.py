"""A small Django project, live beside Backsync in one process: tests/live/test_django.py drives it."""
