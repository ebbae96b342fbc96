"""The base of the models that files are read into."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class FrozenModel(BaseModel):
    """A part of a file that people write: immutable, and closed against unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")
