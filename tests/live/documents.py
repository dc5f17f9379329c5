"""The programs of docs/databases.md that need more than a process of their own: a project, a database."""

from __future__ import annotations

import re

from tests.servers import ROOT


def py_blocks() -> list[str]:
    """The blocks marked `py`, which tests/test_docs.py does not run."""
    text = (ROOT / "docs" / "databases.md").read_text()
    return re.findall(r"^```py\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
