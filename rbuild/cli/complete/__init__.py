"""Completion of command lines by shells, without importing what is slow to import.

It imports ``specs.catalogue`` only.
"""
