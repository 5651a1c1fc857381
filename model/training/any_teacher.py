"""What a cache asks of a teacher, wherever its weights come from."""

from __future__ import annotations

from antigram.model.training.checkpoint import Teacher
from antigram.model.training.external_teacher import ExternalTeacher

__all__ = ["AnyTeacher"]

# Both have the same methods: net, digest, map_shape, read and zeros.
AnyTeacher = Teacher | ExternalTeacher
