"""`python -m memplan` is the command line, which lets torchrun start it: torchrun -m memplan."""

from memplan.cli import main

if __name__ == "__main__":
    main()
