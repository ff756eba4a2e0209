"""`python -m invokeai_saas` is `invokeai-saas`."""

import sys

from invokeai_saas.cli import main

if __name__ == "__main__":
    sys.exit(main())
