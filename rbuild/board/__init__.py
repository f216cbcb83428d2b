"""What a board gets: staging directories, packages, deployment over ssh.

It imports ``module``, ``devicetree`` and what is below.
"""
