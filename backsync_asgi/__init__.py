"""Backsync keeps collections of records in every browser equal to the server's, live."""

from .app import Backsync
from .errors import Reject
from .models import Context

__all__ = ["Backsync", "Context", "Reject"]
