"""What planning the graphs of each model found out, kept while the model lives.

prefill ── planned, agreed on by all ranks ── note_findings
decode, other lengths ── earlier_findings ── planned without a search

Only what all ranks have agreed on is noted: ranks that know the same plan alike.
"""

from weakref import WeakKeyDictionary

from torch import nn

from ladderize.config.options import LadderConfig
from ladderize.sharding.findings import Findings

_Asked = tuple[int, str]
_noted: WeakKeyDictionary[nn.Module, dict[_Asked, Findings]] = WeakKeyDictionary()


def note_findings(module: nn.Module | None, config: LadderConfig, findings: Findings) -> None:
    """Keep what a plan for `module` found out; the latest one counts."""
    if module is not None:
        _noted.setdefault(module, {})[_asked(config)] = findings


def earlier_findings(module: nn.Module | None, config: LadderConfig) -> Findings | None:
    """What is known of `module`, divided over as many ranks and as `config` says."""
    return None if module is None else _noted.get(module, {}).get(_asked(config))


def _asked(config: LadderConfig) -> _Asked:
    mesh = config.device_mesh
    return 1 if mesh is None else mesh.size(), config.experts
