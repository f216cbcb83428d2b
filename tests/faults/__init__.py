"""Faults that rbuild must survive: what is broken, hostile, interrupted or used up."""
