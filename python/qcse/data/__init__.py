"""Datasets: where they come from, what is in them, whether an environment fits them."""
