"""The payload store: the arrays of trajectories outside of Redis, settled with the entries that refer to them."""
