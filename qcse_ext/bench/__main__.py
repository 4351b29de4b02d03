"""python -m qcse_ext.bench"""

import sys

from qcse_ext.bench import main

if __name__ == "__main__":
    sys.exit(main())
