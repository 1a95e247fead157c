r"""`python -m equilayers` is the command `equilayers`."""

import sys

from equilayers.cli import main

if __name__ == "__main__":
    sys.exit(main())
