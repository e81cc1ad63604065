"""`python -m deltalens`."""

import importlib

if __name__ == "__main__":
    # The package knows nothing of its command line; an import statement would say it does.
    importlib.import_module("deltalens.cli.main").main()
