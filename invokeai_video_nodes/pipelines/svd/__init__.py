"""Stable Video Diffusion: what its picture becomes, the denoise, the streaming decode, and its original file."""
