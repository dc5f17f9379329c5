"""The project's settings; importing them sets Django up, once for the process, with its database in a new folder."""

from __future__ import annotations

import atexit
import tempfile
from pathlib import Path

import django
from django.conf import settings

_folder = tempfile.TemporaryDirectory(prefix="backsync-django-")
atexit.register(_folder.cleanup)

settings.configure(
    ALLOWED_HOSTS=["*"],
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": str(Path(_folder.name) / "db.sqlite3"),
            "OPTIONS": {"timeout": 10},
        },
        "again": {  # the same one by another alias
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": Path(_folder.name) / "db.sqlite3",
            "OPTIONS": {"timeout": 10},
        },
        "other": {"ENGINE": "django.db.backends.sqlite3", "NAME": str(Path(_folder.name) / "other.sqlite3")},
    },
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    INSTALLED_APPS=["tests.live.django_project"],
    ROOT_URLCONF="tests.live.django_project.urls",
    USE_TZ=True,
)
django.setup()
