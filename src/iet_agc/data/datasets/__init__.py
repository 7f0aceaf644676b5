"""Readers of published image sets, and the choice among them."""
