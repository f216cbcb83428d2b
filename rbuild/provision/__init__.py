"""Making environments ready: rootfses, emulators, checks of the host, jobs in them.

It imports ``sandbox`` and what is below.
"""
