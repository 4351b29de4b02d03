"""What learns: networks, algorithms, bonuses, the replay buffer, the update that joins them."""
