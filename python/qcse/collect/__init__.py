"""Recordings of new datasets in D4RL's layout."""
