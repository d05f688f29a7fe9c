from dataset.puzzle_dataset import prefetch as prefetch
