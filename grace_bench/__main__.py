"""`python -m grace_bench` is the same as the `grace-bench` command."""

import sys

from grace_bench.cli import main

if __name__ == "__main__":
    sys.exit(main())
