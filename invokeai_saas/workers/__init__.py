"""GPU workers: the registry, the processes that run items, what scales them."""
