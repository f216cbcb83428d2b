"""Trust: what rbuild survives, and what it keeps out."""
