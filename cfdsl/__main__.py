"""`python -m cfdsl`."""

from cfdsl.cli.app import main

if __name__ == "__main__":
    main()
