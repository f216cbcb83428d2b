"""What users write: profiles, environments, architectures, machines, configuration files.

Nothing is built here.  It imports ``ui`` and ``util``.
"""
