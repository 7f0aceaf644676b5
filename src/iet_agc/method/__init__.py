"""The paper's method: Anti-Gradient Control, shards, averages."""
