"""Stable Diffusion: captions to latents and images."""
