"""The cache directory: its entries, their locks, their integrity, what is recorded of them.

It imports ``specs`` and what is below; nothing of kernels or modules.
"""
