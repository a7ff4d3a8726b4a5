"""Run scenarios: files with the model and options of a `ladderize bench` command.

    python bench/run.py bench/scenarios/decode_small.toml [MORE.toml] [--results bench/results]

A scenario is a model, and options named like the flags of the verb: `length = [64, 128]` is
`--length 64,128`, `strict = false` is `--no-strict`. The results replace NAME.json in the folder of
results; `bench/compare.py` shows what changed.
"""

import argparse
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

MOST_BYTES = 2**16
Value = bool | int | float | str
HERE = Path(__file__).parent


def flag(name: str, value: Any) -> list[str]:
    """One option as arguments of a command line."""
    dashed = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{dashed}" if value else f"--no-{dashed}"]
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return [f"--{dashed}", text]


class Scenario(BaseModel):
    """The content of a file; the verb checks the options."""

    model_config = ConfigDict(extra="forbid", strict=True)
    model: str = Field(max_length=4096)
    about: str = ""
    options: dict[str, Value | Annotated[list[Value], Field(max_length=100)]] = {}


def read(file: Path) -> Scenario:
    """Read the scenario in `file`; exit with one line for each fault."""
    try:
        with file.open("rb") as opened:
            data = opened.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise SystemExit(f"{file} is not a scenario: it has more than {MOST_BYTES >> 10} KiB.")
        return Scenario.model_validate(tomllib.loads(data.decode()))
    except OSError as error:
        raise SystemExit(f"{file} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, f['loc']))}: {f['msg']}" for f in error.errors()]
    except (ValueError, RecursionError) as error:  # not TOML, or not UTF-8
        faults = [str(error) or "it is too deep"]
    raise SystemExit(
        f"{file}: a scenario has `model`, a table `options` and may have `about`.\n"
        + "\n".join(faults[:10])
    )


def command_of(scenario: Path, results: Path) -> list[str]:
    """The command line of a scenario; it writes to a partial file next to the final one."""
    given = read(scenario)
    words = [
        given.model,
        *(word for name, value in given.options.items() for word in flag(name, value)),
    ]
    return ["ladderize", "bench", *words, "--out", str(unfinished(scenario, results))]


def unfinished(scenario: Path, results: Path) -> Path:
    return results / f".{scenario.stem}.json"


def run(scenario: Path, results: Path) -> Path:
    """Run a scenario from the repository root, to which the paths in scenarios are relative."""
    results.mkdir(parents=True, exist_ok=True)
    unfinished(scenario, results).unlink(missing_ok=True)
    command = command_of(scenario, results)
    print(shlex.join(command), flush=True)
    start = [sys.executable, "-c", "from ladderize.tools.cli import main; main()", *command[1:]]
    if subprocess.run(start, cwd=HERE.parent, check=False).returncode:
        raise SystemExit(f"{scenario}: the command failed; nothing was written.")
    found = results / f"{scenario.stem}.json"
    unfinished(scenario, results).replace(found)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scenarios", type=Path, nargs="+", metavar="SCENARIO")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder of results")
    parser.add_argument("--print", action="store_true", help="only print the commands")
    given = parser.parse_args()
    results = given.results.absolute()
    for scenario in given.scenarios:
        if given.print:
            print(shlex.join(command_of(scenario, results)))
        else:
            print(f"wrote {run(scenario, results)}")


if __name__ == "__main__":
    main()
