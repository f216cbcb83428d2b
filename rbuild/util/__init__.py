"""What any part of rbuild may use: processes, files, downloads' helpers, YAML models, ELF.

It imports nothing of rbuild but ``errors``.
"""
