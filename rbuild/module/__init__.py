"""Modules: sources synchronised, built by Kbuild, checked as the kernel would check them.

It imports ``kernel`` and what is below, and knows nothing of ``devicetree``.
"""
