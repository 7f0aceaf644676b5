"""`python -m iet_agc`, which is what `torchrun` starts."""

from iet_agc.cli import main

if __name__ == "__main__":
    main()
