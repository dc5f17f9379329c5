"""Two views that save a note, one of each kind."""

from __future__ import annotations

from typing import Any

from django.http import HttpResponse
from django.urls import path

from .models import Note


def save(request: Any) -> Any:
    Note.objects.create(text=request.GET["text"])
    return HttpResponse(status=204)


async def asave(request: Any) -> Any:
    await Note.objects.acreate(text=request.GET["text"])
    return HttpResponse(status=204)


urlpatterns = [path("save", save), path("asave", asave)]
