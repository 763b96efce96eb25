"""`python -m attackcheck` is the command line, as torchrun starts it: `torchrun -m attackcheck train`."""

import sys

from attackcheck.cli import main

if __name__ == "__main__":
    sys.exit(main())
