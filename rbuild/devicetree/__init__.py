"""Device trees: blobs, overlays and their parameters, bindings and dt-schema.

It imports ``kernel`` and what is below, and knows nothing of ``module``.
"""
