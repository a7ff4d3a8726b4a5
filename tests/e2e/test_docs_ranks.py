"""The `py` fragments of the pages, which need several ranks, run on two; and what they read is
written by the pages' own `ladderize` commands.

A fragment runs as is, apart from SUBSTITUTIONS. FRAGMENTS has the code before it, which the reader
provides, and the code after it, which checks its effect.
"""

import io
import os
import shlex
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from helpers.engines_stand_in import engines_in_pytorch
from helpers.forked_launch import forked_launch
from helpers.pages import PAGES, Block, blocks, commands, is_walked, of_kind, steady
from helpers.traced_once import traced_once
from helpers.word_tokenizers import chain_text, word_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from ladderize.tools.cli import main

SUBSTITUTIONS = (
    ('"cuda"', '"cpu"'),
    ("(8,)", "(2,)"),
    ('"Llama-3.1-70B"', "folder"),
    ("--tp 8", "--tp 2"),
    ("--share 0.3,0.6,0.9", "--share 0.6"),
    (
        " bench hf:llama ",
        " bench hf:llama --lowering eager --repeats 2 --warmup 1 --length 8 --phase prefill "
        "--variants standard,ladder,bound ",
    ),
    (
        "--text notes.txt --out plan.json",
        "--text notes.txt --out plan.json --length 16 --tokens 64",
    ),
    (
        "--text notes.txt --out healed",
        "--text notes.txt --out healed --length 16 --tokens 640 --lowering eager",
    ),
    ("evaluate hf:checkpoint", "evaluate hf:checkpoint --length 16 --tokens 256"),
    # A C++ compiler is not the point.
    ("fullgraph=True)", 'fullgraph=True, options={"lowering": "eager"})'),
    ('options={"mesh": mesh}', 'options={"mesh": mesh, "lowering": "eager"}'),
    ("compile(model, mesh=mesh", 'compile(model, lowering="eager", mesh=mesh'),
    ("from_pretrained(folder, mesh)", 'from_pretrained(folder, mesh, lowering="eager")'),
)
TRIED_ELSEWHERE = {"ladderize doctor"}  # tests/tools/test_doctor.py
# Run under --deep: of the first the suite has tests/tools/test_bench.py, of the second
# tests/backends/test_tensorrt.py.
LONG = (" bench ", " --lowering tensorrt ")
SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "vocab_size": 64}

READER_HAS = """
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.export import Dim
from transformers import AutoModelForCausalLM, DistributedConfig, LlamaConfig, LlamaForCausalLM

import ladderize

folder = path = "checkpoint"  # that `workshop` has saved
config, ids = LlamaConfig.from_pretrained(folder), torch.zeros(1, 8, dtype=torch.int64)
standard = LlamaForCausalLM.from_pretrained(folder)
"""
IS_A_LADDER = """
with torch.no_grad():
    found, expected = {run}(ids).logits, standard(ids).logits
assert found.shape == expected.shape and not torch.allclose(found, expected, atol=1e-4)
"""
REPORTS_COLLECTIVES = """
report = ladderize.last_report()
assert report.ok and len(report.blocks) == 4 and len(report.collectives) >= 4, str(report)
"""
SHARDED = """
model = AutoModelForCausalLM.from_pretrained(
    path, distributed_config=DistributedConfig(tp_plan="auto")
)
"""
MODEL = "model = LlamaForCausalLM.from_pretrained(folder)"
OWNS_ITS_MEMORY = """
mesh = init_device_mesh("cpu", (2,))
model = LlamaForCausalLM(config).eval()  # from_pretrained maps the file, which nothing can free
model.load_state_dict(standard.state_dict())
model.generation_config.max_new_tokens = 2
"""
PYTORCH_FOR_ENGINES = """
from helpers.engines_stand_in import engines_in_pytorch
from helpers.forked_launch import forked_launch

stand_in = engines_in_pytorch()
stand_in.__enter__()
"""
OVER_MESH = "\nmesh = init_device_mesh('cpu', (2,))"
EXPERTS = f"""
from transformers import MixtralConfig, MixtralForCausalLM

mesh = init_device_mesh("cpu", (2,))
sizes = dict(num_hidden_layers=2, num_local_experts=4, num_key_value_heads=4, use_cache=False)
mixture = MixtralConfig(**sizes, **{SHAPE})
mixture._experts_implementation = "grouped_mm"
torch.manual_seed(0)
model = MixtralForCausalLM(mixture).eval()
llama, folder, factory = folder, model.state_dict(), lambda: MixtralForCausalLM(mixture)
"""
SAME_LOGITS = """
with torch.no_grad():
    assert torch.allclose(shard(ids).logits, model(ids).logits, atol=1e-4)
folder = llama
"""
TOKENIZER = """
import torch.distributed as dist
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(folder)
"""
SAME_TOKENS = """
every = [torch.empty_like(tokens) for _ in range(2)]
dist.all_gather(every, tokens)
assert torch.equal(*every) and tokens.shape[1] > 8
"""
SAME_PARAMETERS = """
import torch.distributed as dist

mine = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
every = [torch.empty_like(mine) for _ in range(2)]
dist.all_gather(every, mine)
assert all(torch.equal(mine, other) for other in every)
"""
PROGRAM = "program = torch.export.load('model.pt2')"
FRESH = "assert found.failed[0].found == 'on rank 0, its branch reads x1, fresh, not x0'"
COMPILED = IS_A_LADDER.format(run="model") + REPORTS_COLLECTIVES
SHARD = IS_A_LADDER.format(run="shard")

# For each fragment of a page what comes before it and after it.
FRAGMENTS = {
    "docs/command-line.md": ((PROGRAM, FRESH),),
    "README.md": ((SHARDED, COMPILED), (MODEL, COMPILED), ("", SHARD)),
    "docs/index.md": ((SHARDED, COMPILED),),
    "docs/experts.md": ((SHARDED, COMPILED),),
    "docs/parallelize.md": (
        ("", "assert logits.shape == (1, 8, 64)" + SHARD),
        ("", SHARD),
        ("", SHARD),
    ),
    "docs/tensorrt.md": (
        (PYTORCH_FOR_ENGINES + MODEL + OVER_MESH, IS_A_LADDER.format(run="model")),
        ("", IS_A_LADDER.format(run="shard")),
    ),
    "docs/sharded.md": (("", COMPILED),),
    "docs/training.md": ((MODEL, SAME_PARAMETERS),),
    "docs/generate.md": ((TOKENIZER, SAME_TOKENS),),
    "docs/sharding.md": (
        (EXPERTS, SAME_LOGITS),
        (OWNS_ITS_MEMORY, "assert freed > 0" + IS_A_LADDER.format(run="model")),
    ),
}


def adapted(code: str) -> str:
    for written, here in SUBSTITUTIONS:
        code = code.replace(written, here)
    return code


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, `checkpoint`, the same as a program, `model.pt2`, and `notes.txt`."""
    folder = tmp_path_factory.mktemp("workshop")
    torch.manual_seed(0)
    config = LlamaConfig(num_hidden_layers=2, initializer_range=0.3, use_cache=False, **SHAPE)
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(folder / "checkpoint")
    word_tokenizer().save_pretrained(folder / "checkpoint")
    (folder / "notes.txt").write_text(chain_text(3_000))
    ids = torch.zeros(1, 8, dtype=torch.int64)
    torch.export.save(torch.export.export(model, (ids,), strict=False), folder / "model.pt2")
    return folder


def ladderize_lines() -> list[tuple[Block, str]]:
    """The `ladderize` commands of all pages, in order."""
    told = [(block, line) for block in of_kind("sh") for line in commands(block)]
    return [
        (block, line)
        for block, line in told
        if line.startswith("ladderize ")
        and line not in TRIED_ELSEWHERE
        and not is_walked(block, line)
    ]


@pytest.fixture(scope="module")
def commanded(workshop: Path, request: pytest.FixtureRequest) -> dict[Block, str]:
    """What the `ladderize` commands of each block print; they have been run in `workshop`.

    The programs that the reader is told to save beside them are there.
    """
    printed: dict[Block, str] = {}
    seen: dict[str, str] = {}  # a line that stands on two pages is run once
    if not request.config.getoption("--deep"):
        seen = {line: "" for _, line in ladderize_lines() if any(map(line.__contains__, LONG))}
    for block, _ in ladderize_lines():
        for program in (found for found in blocks(block.page) if found.file):
            (workshop / program.file).write_text(program.code)
            sys.modules.pop(Path(program.file).stem, None)  # another test's of the same name
    with pytest.MonkeyPatch.context() as patch, traced_once():
        patch.chdir(workshop)
        for block, line in ladderize_lines():
            if line not in seen:
                seen[line] = output_of(adapted(line), patch)
            printed[block] = printed.get(block, "") + seen[line]
    return printed


def output_of(line: str, patch: pytest.MonkeyPatch) -> str:
    """Of a `ladderize` command, run in this process."""
    patch.setattr(sys, "argv", shlex.split(line))
    told, ended = redirect_stdout(io.StringIO()), pytest.raises(SystemExit)
    with told as out, engines_in_pytorch(), forked_launch(), ended as done:
        main()
    assert done.value.code == 0, line
    return out.getvalue()


def run_fragments(folder: str, fragments: Sequence[tuple[str, str, str]]) -> None:
    """On a rank: each fragment between what comes before it and after it, in one namespace."""
    rank, num_ranks = str(dist.get_rank()), str(dist.get_world_size())
    os.environ.update(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=num_ranks)  # as torchrun does
    os.chdir(folder)
    names: dict[str, object] = {}
    exec(READER_HAS, names)
    for before, code, after in fragments:
        torch._dynamo.reset()
        for text in (before, code, after):
            exec(compile(text, "fragment.py", "exec"), names)


EVERY_RUN = {"README.md"}


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[pytest.mark.deep] if page in {*FRAGMENTS} - EVERY_RUN else [])
        for page in PAGES
    ],
)
def test_fragments_run(page, request):
    codes = [adapted(block.code) for block in blocks(page) if block.kind == "py"]
    around = FRAGMENTS.get(page, ())
    assert len(codes) == len(around), f"FRAGMENTS says nothing of a fragment of {page}"
    if codes:
        two_ranks, workshop = (
            request.getfixturevalue("two_ranks"),
            request.getfixturevalue("workshop"),
        )
        request.getfixturevalue("commanded")
        fragments = [
            (before, code, after) for code, (before, after) in zip(codes, around, strict=True)
        ]
        two_ranks.run(run_fragments, str(workshop), fragments)


def test_commands_print_what_the_pages_say(commanded):
    for block, printed in commanded.items():
        if block.printed:
            assert steady(printed) == steady(block.printed)


def test_rewrite_writes_a_file_for_each_rank(workshop, commanded):
    assert any("ladderize rewrite model.pt2 --out model-tp8 --tp 8" in b.code for b in commanded)
    assert sorted(path.name for path in (workshop / "model-tp8").iterdir()) == [
        "graph.pt2",
        "manifest.json",
        "rank-00000-of-00002.safetensors",
        "rank-00001-of-00002.safetensors",
    ]


def test_every_substitution_is_needed():
    told = "".join(block.code for page in PAGES for block in blocks(page))
    assert [written for written, _ in SUBSTITUTIONS if written not in told] == []
