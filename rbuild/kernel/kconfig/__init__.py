"""Kconfig's language: a parser, and why an option is granted or refused.

It imports ``util`` only.
"""
