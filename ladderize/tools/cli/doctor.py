"""`ladderize doctor`: what works on this machine."""

import json as json_of
from dataclasses import asdict

from ladderize.tools.cli import arguments as flags
from ladderize.tools.cli.running import console, print_json, refuse, running, working

STYLES = {"ok": "green", "warning": "yellow", "missing": "dim", "broken": "bold red"}


def doctor(json: flags.Json = False, debug: flags.Debug = False) -> None:
    """Check what ladderize depends on: devices, compilers, collectives, TensorRT, caches.

    The exit code is 1 if something required is broken.
    """
    with running("doctor", debug, json), working("checking this machine"):
        from ladderize.tools.doctor.examine import examine

        checks = examine()
    broken = [check for check in checks if check.status == "broken"]
    if json:
        print_json(json_of.dumps({"ok": not broken, "checks": [*map(asdict, checks)]}, indent=1))
    else:
        from rich.text import Text

        from ladderize.report.present.tables import plain_table

        table = plain_table("part", "", "found", left=(0, 1, 2))
        for check in checks:
            lines = [check.found, *([f"→ {check.cure}"] if check.cure else [])]
            style = STYLES[check.status]
            table.add_row(check.name, Text(check.status, style), Text("\n".join(lines)))
        console().print(table)
    if broken:
        raise refuse("doctor", f"broken: {', '.join(check.name for check in broken)}")
