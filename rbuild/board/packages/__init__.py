"""Packages of what was built: .deb, DKMS, an archive for the boot partition.

It imports ``board.staging`` and what is below.
"""
