"""Gymnasium environments: D4RL's among them, made by name, with a boundary that checks what crosses it."""
