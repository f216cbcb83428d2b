"""What editors and language servers need of a KDIR and a module.

It imports ``module`` and what is below.
"""
