"""Sample sets on disk."""
