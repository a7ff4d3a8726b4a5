"""Print the README's set-up command that installs the given extra, as it stands there."""

import sys
from pathlib import Path


def main() -> None:
    readme = Path(__file__).parent.parent / "README.md"
    extra = f".[{sys.argv[1]}]"
    commands = [line.strip() for line in readme.read_text().splitlines() if extra in line]
    if len(commands) != 1:
        sys.exit(f"README.md has {len(commands)} lines with {extra!r}, not one")
    print(commands[0])


if __name__ == "__main__":
    main()
