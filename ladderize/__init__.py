"""ladderize: a torch.compile backend that turns residual models into ladder networks.

    model = torch.compile(model, backend="ladderize", fullgraph=True)

`import ladderize` is not needed for that line; torch finds the backend by its entry point.
"""

from ladderize.config import LadderConfig
from ladderize.errors import LadderError, LadderWarning

__all__ = ["LadderConfig", "LadderError", "LadderWarning", "__version__"]
__version__ = "0.1.0"
