"""Models of several kinds: plain, inherited, related, and some that cannot be live."""

from __future__ import annotations

import uuid
from typing import Any

from django.db import models


class Label(models.Model):  # type: ignore[misc]
    """The table of Tag once more, as somebody has it who has reflected it."""

    name = models.CharField(max_length=20)

    class Meta:  # noqa: D106 - Django's name
        managed = False
        db_table = "django_project_tag"


class Tag(models.Model):  # type: ignore[misc]
    name = models.CharField(max_length=20)


class Folder(models.Model):  # type: ignore[misc]
    name = models.CharField(max_length=20)


class Note(models.Model):  # type: ignore[misc]
    text = models.CharField(max_length=100)
    count = models.IntegerField(default=0)
    folder = models.ForeignKey(Folder, models.CASCADE, null=True)
    shelf = models.ForeignKey(Folder, models.SET_NULL, null=True, related_name="shelved")
    tags = models.ManyToManyField(Tag, related_name="notes")


class Reminder(Note):
    """A note in a table of its own."""

    due = models.DateTimeField()


class Ticket(models.Model):  # type: ignore[misc]
    code = models.UUIDField(primary_key=True, default=uuid.uuid4)
    price = models.DecimalField(max_digits=6, decimal_places=2)
    scan = models.FileField(null=True)
    day = models.DateField(null=True)


class Sample(models.Model):  # type: ignore[misc]
    id = models.IntegerField(primary_key=True)
    word = models.CharField(max_length=20, null=True)
    size = models.FloatField(null=True)
    count = models.IntegerField()
    done = models.BooleanField(null=True)
    at = models.DateTimeField(null=True)
    price = models.DecimalField(max_digits=8, decimal_places=2, null=True)
    tags = models.JSONField(null=True)


class Blob(models.Model):  # type: ignore[misc]
    content = models.BinaryField()


class Account(models.Model):  # type: ignore[misc]
    name = models.CharField(max_length=20)
    password = models.CharField(max_length=20)


class Grade(models.Model):  # type: ignore[misc]
    pk: Any = models.CompositePrimaryKey("pupil", "subject")
    pupil = models.IntegerField()
    subject = models.CharField(max_length=20)


class Base(models.Model):  # type: ignore[misc]
    """Without a table."""

    class Meta:  # noqa: D106 - Django's name
        abstract = True


class Big(models.Model):  # type: ignore[misc]
    id = models.BigIntegerField(primary_key=True)
    room = models.BigIntegerField(null=True)
    size = models.FloatField(null=True)
    tags = models.JSONField(null=True)


class Coded(models.Model):  # type: ignore[misc]
    code = models.CharField(primary_key=True, max_length=128)
    same = models.IntegerField(default=1)
