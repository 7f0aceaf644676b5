"""How much of a sample set is copied from a training set."""
