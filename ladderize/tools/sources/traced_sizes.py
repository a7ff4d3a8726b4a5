"""Read the sizes that a program was traced with, to trace another model with the same sizes."""

from torch import Tensor
from torch.export import ExportedProgram

from ladderize.graph import ops
from ladderize.testing.verify.inputs import is_dynamic, user_inputs
from ladderize.tools.sources.hugging_face import InputSizes


def sizes_of(program: ExportedProgram) -> InputSizes:
    """The sizes of the inputs of `program`, as `make_inputs` makes them; dynamic ones have none.

    They are read from the first input: integers are tokens `[batch, length]`, and the last dim of
    an image is its width.
    """
    if is_dynamic(program):
        return InputSizes(is_dynamic=True)
    for node in user_inputs(program):
        value = ops.value(node)
        if isinstance(value, Tensor) and value.dim() > 1:
            batch, *_, last = map(int, value.shape)
            if value.is_floating_point():
                return InputSizes(batch, image=last)
            return InputSizes(batch, last)
    return InputSizes()
