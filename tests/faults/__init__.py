"""Trust: what rbuild survives, and what it keeps out."""

CHECKED = ("tests/unit/test_staleness.py",)
"""Unit tests that change whatever a result depends on: a part of the report."""
