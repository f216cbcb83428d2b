"""Running a command in an environment: the Runtime protocol, bubblewrap, Docker, outputs.

It imports ``cache`` and what is below; what an environment consists of is ``provision``'s.
"""
