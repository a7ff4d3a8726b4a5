"""The README.md of a ladder checkpoint, which warns that other engines ignore the ladder entry.

It replaces only a README.md that was written here, which its last line marks.
"""

from pathlib import Path

from ladderize.config.connectivity import LADDER
from ladderize.config.ladder_entry import KEY, LadderEntry
from ladderize.config.residual_form import PARALLEL
from ladderize.errors import counted
from ladderize.report.files import write_file

NAME = "README.md"
MARK = "<!-- written by ladderize -->"


def write_card(folder: Path, entry: LadderEntry) -> None:
    """Write README.md into `folder` (created if needed), unless another README.md exists."""
    path = folder / NAME
    if path.is_file() and MARK not in path.read_text("utf-8", errors="replace"):
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_file(path, _text(entry), force=True)


def _reads(entry: LadderEntry) -> str:
    if entry.variant == PARALLEL:
        return """The blocks of a layer read the same value of the residual stream, and are added up
(GPT-J, PaLM), so that a layer needs one tensor-parallel reduction."""
    if entry.connectivity != LADDER:
        return """Each of these blocks reads the residual stream without what is
in flight of the block before it (FarSkip-Collective, arXiv 2511.11505): the routed experts. So the
communication of experts hides behind compute."""
    return f"""Each of these blocks reads the residual stream
{counted(entry.staleness, "block")} earlier than in the standard network, so that tensor-parallel
communication hides behind compute."""


def _text(entry: LadderEntry) -> str:
    return f"""---
library_name: transformers
tags:
- ladder-residual
---

# A ladder network

The weights in this folder are those of a ladder network (arXiv 2501.06589), as `{KEY}` in
`config.json` says: {entry}. {_reads(entry)}

**Warning: engines that do not know this entry run these weights as a standard network, without an
error. That computes another function, with worse answers.** `transformers` without ladderize is
such an engine.

```python
import ladderize
from transformers import AutoModelForCausalLM

model = ladderize.compile(AutoModelForCausalLM.from_pretrained("DIR"))
```

vLLM with ladderize installed, `python -m ladderize.integrations.transformers serve` and
`torch.compile(model, backend="ladderize")` read the entry too.

{MARK}
"""
