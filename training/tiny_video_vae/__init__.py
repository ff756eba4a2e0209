"""A tiny video VAE that has seen real footage: tiling cannot be judged on one that paints noise."""
