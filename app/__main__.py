"""python -m app INPUT OUTPUT"""

from .cli import entry

if __name__ == "__main__":
    entry()
