"""python -m app INPUT OUTPUT"""

from .cli import main

if __name__ == "__main__":
    main(prog_name="python -m app")
