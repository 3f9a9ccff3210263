"""`python -m instantstyle`, the same as the command."""

from instantstyle.cli import main

if __name__ == "__main__":
    main()
