"""Settings and presets. No torch."""
