"""The toy text-to-video model: synthetic clips -> VAE -> transformer -> a diffusers folder."""
