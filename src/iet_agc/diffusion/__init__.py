"""The diffusion process, the U-Net and its samplers."""
