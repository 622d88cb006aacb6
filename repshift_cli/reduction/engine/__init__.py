"""How a method's choice is applied to a model: hooks, selection, grids, the fused sum."""
