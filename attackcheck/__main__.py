"""`python -m attackcheck` is the command line, as torchrun starts it: `torchrun -m attackcheck train`."""

from attackcheck.cli import run

if __name__ == "__main__":
    run()
