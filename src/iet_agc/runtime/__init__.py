"""What all else stands on: processes, files, seeds, progress. Knows nothing of images and models."""
