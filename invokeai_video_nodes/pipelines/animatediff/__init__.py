"""AnimateDiff: motion modules over Stable Diffusion 1.5."""
