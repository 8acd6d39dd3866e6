"""Comparing losses: evaluate, sweep, statistics, report, restore and score."""
