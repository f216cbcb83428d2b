"""The docker runtime: engines, images, volumes, and the transport of files.

``sandbox``'s own rules hold; only its ``runtime`` is for others.
"""
