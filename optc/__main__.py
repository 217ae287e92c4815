"""``python -m optc``: the command line."""

from optc.tools.cli import main

if __name__ == "__main__":
    main()
