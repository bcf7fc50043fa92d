"""Comparisons at equal FLOPs: of engines, of model sizes, and of ways to divide a budget over problems."""
