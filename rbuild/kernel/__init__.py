"""Kernels: configured, prepared, built; Kbuild's variables and output; ccache.

It imports ``source`` and what is below.
"""
