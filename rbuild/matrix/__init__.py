"""Many builds at once: every combination of what was asked for, on this machine or on several."""
