"""Inputs and error budgets that tests and benchmarks share."""
