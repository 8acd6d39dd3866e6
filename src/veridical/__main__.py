"""`python -m veridical` is the command `veridical`."""

from veridical.cli import main

if __name__ == "__main__":
    main()
