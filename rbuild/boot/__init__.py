"""Booting a kernel in QEMU: initramfs, console, test results, fault reports.

It imports ``module`` and what is below.
"""
