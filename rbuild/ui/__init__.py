"""What the user sees while a command runs: console, live view, estimates, annotations.

Every room above imports it; it imports ``util``.
"""
