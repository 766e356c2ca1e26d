"""``python -m experiments``: the command line of experiments.run."""

import sys

from experiments import run

if __name__ == "__main__":
    sys.exit(run.main(sys.argv))
