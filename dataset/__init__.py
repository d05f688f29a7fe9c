"""Raw puzzles -> arrays on disk -> batches, with numpy: nothing in this package imports mlx."""
