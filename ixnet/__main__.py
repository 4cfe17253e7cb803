"""`python -m ixnet` is `ixnet`."""

from ixnet.cli import main

if __name__ == "__main__":
    main()
