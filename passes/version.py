"""The version, once, where every stage may read it."""

from __future__ import annotations

VERSION = "0.1.0"
