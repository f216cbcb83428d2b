"""Deployment to a board over the user's own ssh; its shell scripts are in ``remote/``.

It imports ``board.staging`` and what is below.
"""
