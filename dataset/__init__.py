"""Raw puzzles -> arrays on disk -> batches. numpy only: nothing in this package imports mlx."""
