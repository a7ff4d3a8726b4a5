"""Findings of earlier sharding plans of each model, kept for the lifetime of the model.

prefill ── planned, agreed on by all ranks ── note_findings
decode, other lengths ── earlier_findings ── planned without a search

Only plans that all ranks agreed on are noted, so all ranks have the same findings and plan alike.
"""

from weakref import WeakKeyDictionary

from torch import nn

from ladderize.config.options import LadderConfig
from ladderize.sharding.findings import Findings

_Asked = tuple[int, str]
_noted: WeakKeyDictionary[nn.Module, dict[_Asked, Findings]] = WeakKeyDictionary()


def note_findings(module: nn.Module | None, config: LadderConfig, findings: Findings) -> None:
    """Store the findings of a plan for `module`; they replace earlier ones."""
    if module is not None:
        _noted.setdefault(module, {})[_asked(config)] = findings


def earlier_findings(module: nn.Module | None, config: LadderConfig) -> Findings | None:
    """The findings for `module` with the ranks and experts of `config`; None if there are none."""
    return None if module is None else _noted.get(module, {}).get(_asked(config))


def _asked(config: LadderConfig) -> _Asked:
    mesh = config.device_mesh
    return 1 if mesh is None else mesh.size(), config.experts
