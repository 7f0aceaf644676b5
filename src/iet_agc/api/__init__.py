"""From Python: the verbs of the command line as functions, which take images in memory as well as paths."""
