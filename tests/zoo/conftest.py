"""A fixture of the zoo."""

import pytest
import torch


@pytest.fixture
def no_fused_layers() -> None:
    """`nn.TransformerEncoder` as its ops: its fused layer would hide both of a layer's blocks."""
    torch.backends.mha.set_fastpath_enabled(False)  # tests/conftest.py restores it
