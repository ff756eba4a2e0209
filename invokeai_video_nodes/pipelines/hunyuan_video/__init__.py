"""HunyuanVideo and HunyuanVideo-1.5: prompt features, start frames, the denoise, and their checkpoints."""
