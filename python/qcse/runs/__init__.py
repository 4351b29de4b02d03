"""Runs: what a configuration names, built; the loop that trains it; the folder that it writes; many at a time."""
