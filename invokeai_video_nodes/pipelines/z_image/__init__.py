"""Z-Image Video: denoising with frames, start frames, and the layouts of its checkpoints."""
