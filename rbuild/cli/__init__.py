"""The command line: one module for each command, which parses, calls and prints.

Nothing imports it but ``rbuild.__main__``.
"""
