"""`python -m attackcheck` is the command line."""

from attackcheck.cli import run

if __name__ == "__main__":
    run()
