"""`python -m cmerwatch_worker`: one worker process."""

import sys

from cmerwatch_worker.app import main

if __name__ == "__main__":
    sys.exit(main())
