"""The arithmetic that pruning adds to a forward: distances, selection, gathering."""
