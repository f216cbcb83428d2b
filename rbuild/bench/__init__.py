"""Benchmarks: planned, measured, compared, reported.

It imports all of the rooms that build; ``matrix`` and ``cli`` import it.
"""
