"""Raw puzzles -> arrays on disk -> batches, in numpy: nothing in this package imports mlx."""
