"""The diffusion process and flow matching, the networks over pixels, and samplers."""
