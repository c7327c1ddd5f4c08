"""`python -m mobilenets`: how torchrun starts it."""

from mobilenets.cli import main

if __name__ == "__main__":
    main()
