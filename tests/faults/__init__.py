"""Faults put into real runs of `veridical compare`, and what becomes of the run: `python -m tests.faults`.

Every command runs in a process of its own, forked from one that has imported everything, so that hundreds take minutes.
"""
