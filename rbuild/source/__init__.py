"""Kernel sources: resolved, fetched, verified, unpacked, patched, read for their symbols.

It imports ``provision`` and what is below.
"""
