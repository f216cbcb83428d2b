"""What a shell completes: a table of the command line, the names in the data folders, the shells.

Nothing here imports pydantic or a command: whoever presses Tab waits for it.
"""
