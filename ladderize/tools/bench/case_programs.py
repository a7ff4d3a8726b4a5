"""A case's model as an exported program, with its inputs.

Settings, Case ── ladderize/tools/sources ── program, call
          ──────────── settings.written ──── its ladder, as written by hand
"""

from torch.export import ExportedProgram

from ladderize.errors import LadderError
from ladderize.frontends.sharded.tracing import export_program
from ladderize.tools.bench.bench_settings import Case, Settings
from ladderize.tools.bench.timing import ModelCall
from ladderize.tools.sources.cached import CachedLM, decode_inputs, set_cached
from ladderize.tools.sources.hugging_face import InputSizes, configured_model
from ladderize.tools.sources.opened_models import open_model


def prepare(settings: Settings, case: Case) -> tuple[ExportedProgram, ModelCall]:
    """Export the model of `settings` at the sizes of `case`; return it with the call to time.

    Raises:
        LadderError: the model does not exist, cannot be traced or has no example inputs, or the
            case is decode and the model cannot generate.
    """
    if case.phase == "decode":
        return _decoding(settings, case)
    program = _opened(settings.model, case)
    if program.example_inputs is None:
        raise LadderError(
            f"{settings.model} holds no example inputs to call it with.",
            cure="write a function that returns (model, args, kwargs), and pass module:function",
        )
    args, kwargs = program.example_inputs
    return program, ModelCall(tuple(args), dict(kwargs), is_training=case.is_training)


def written_by_hand(settings: Settings, case: Case) -> ExportedProgram | None:
    """The hand-written ladder of `settings`, or None."""
    return _opened(settings.written, case) if settings.written else None


def _opened(name: str, case: Case) -> ExportedProgram:
    return open_model(name, InputSizes(case.batch or 1, case.length or 1)).program()


def _decoding(settings: Settings, case: Case) -> tuple[ExportedProgram, ModelCall]:
    model = configured_model(settings.model)
    if not model.can_generate():
        raise LadderError(
            f"{type(model).__name__} cannot generate, so there is nothing to decode.",
            cure="use --phase prefill",
        )
    cached = CachedLM(model, case.batch, case.length + settings.new).eval()
    set_cached(cached, case.length)
    args = decode_inputs(model, case.batch, case.length)
    program = export_program(cached, args, {}, None)
    return program, ModelCall(args, {}, lambda module: set_cached(module, case.length))
