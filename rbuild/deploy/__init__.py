"""Bringing what was built to a board, over ssh."""
