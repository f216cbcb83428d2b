"""rbuild builds a Linux kernel and a driver for a 64-bit Arm board, and measures each way."""

__version__ = "0.1.0"
