"""Benchmarks: plan, measure, compare, report."""
