"""Layers of detection nets: their writers, and (below) the functions that exported files contain."""

from __future__ import annotations

__all__: list[str] = []
