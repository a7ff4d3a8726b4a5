"""The table of mutants: one fault in one line of the package each, and the tests that see it.

    Mutant("the skip is dropped from the sum", "ladderize/streams/recurrence.py",
           "skip + branch",  ->  "branch",      killed by tests/passes/test_reroute.py::test_…

`run.py` plants each fault in a copy of the tree and runs its tests there. Every mutant computes
something else than the original: none is an equivalent spelling of it.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Mutant:
    """One fault.

    Attributes:
        name: in a few words, unique.
        file: of the package, relative to the root of the repository.
        old: the text that is replaced; it occurs once in the file.
        new: the faulty text.
        tests: the pytest node that has to fail.
    """

    name: str
    file: str
    old: str
    new: str
    tests: str

    @property
    def test_file(self) -> str:
        return self.tests.partition("::")[0]

    def plant(self, text: str) -> str:
        """The faulty text of the file."""
        return text.replace(self.old, self.new)


def find_misfits(root: Path, mutants: Iterable[Mutant]) -> Iterator[str]:
    """Every mutant that cannot be planted in the tree at `root`, and why."""
    mutants = list(mutants)
    for name, count in Counter(mutant.name for mutant in mutants).items():
        if count > 1:
            yield f"{name}: {count} mutants have this name"
    for mutant in mutants:
        if not (root / mutant.test_file).is_file():
            yield f"{mutant.name}: there is no {mutant.test_file}"
        if mutant.old == mutant.new:
            yield f"{mutant.name}: the new text is the old one"
        path = root / mutant.file
        count = path.read_text().count(mutant.old) if path.is_file() else None
        if count is None:
            yield f"{mutant.name}: there is no {mutant.file}"
        elif count != 1:
            yield f"{mutant.name}: {count} places of {mutant.file} hold {mutant.old!r}, not one"


# ---- streams ---------------------------------------------------------------------------------

STREAMS = (
    Mutant(
        "a size counts as a read",
        "ladderize/streams/context.py",
        "stack.extend(s for s in self.sources[node] if ops.holds_tensor(s))",
        "stack.extend(self.sources[node])",
        "tests/passes/test_properties.py::test_a_size_is_no_read_of_the_stream",
    ),
    Mutant(
        "one static source makes a node static",
        "ladderize/streams/context.py",
        "is_static = not ops.holds_tensor(node) or all(",
        "is_static = not ops.holds_tensor(node) or any(",
        "tests/streams/test_find.py::test_each_block_reads_what_the_one_before_wrote",
    ),
    Mutant(
        "a sum reads memory as it was made",
        "ladderize/streams/context.py",
        "return self.writes.get(node, {}).get(operand, operand)",
        "return operand",
        "tests/graph/test_dataflow.py::test_what_is_written_into_a_buffer_is_read_stale",
    ),
    Mutant(
        "scaled sums are flattened",
        "ladderize/streams/context.py",
        "is_plain = ops.kind(node) is Kind.ADD and not node.kwargs",
        "is_plain = ops.kind(node) is Kind.ADD",
        "tests/streams/test_find.py::test_a_scaled_sum_of_branches_is_not_flattened",
    ),
    Mutant(
        "a sum with several readers is flattened",
        "ladderize/streams/candidates.py",
        "if len(operand.users) == 1 and context.is_plain_sum(operand):",
        "if context.is_plain_sum(operand):",
        "tests/streams/test_find.py::test_spellings_of_the_add",
    ),
    Mutant(
        "a group skip is a block",
        "ladderize/streams/candidates.py",
        "if any(writer[other] in inside for other in inside):",
        "if all(writer[other] in inside for other in inside):",
        "tests/streams/test_find.py::test_group_skip_around_two_blocks_is_dropped",
    ),
    Mutant(
        "the subtrahend of a difference is a skip",
        "ladderize/streams/candidates.py",
        "for skip in (leaves[:1] if is_difference else leaves)",
        "for skip in (leaves[1:] if is_difference else leaves)",
        "tests/passes/test_properties.py::test_sums_in_odd_spellings",
    ),
    Mutant(
        "of two skips the last that scales the stream is taken",
        "ladderize/streams/candidates.py",
        "scaled = (read for read in found.items() if context.is_scaled(*read))",
        "scaled = (read for read in [*found.items()][::-1] if context.is_scaled(*read))",
        "tests/streams/test_own_skips.py::test_the_own_skip_is_as_stale_as_its_branch",
    ),
    Mutant(
        "a norm scales the stream",
        "ladderize/streams/context.py",
        "if len(made) != 1 or not ops.only_scales(node):",
        "if len(made) != 1:",
        "tests/streams/test_own_skips.py::test_the_own_skip_is_as_stale_as_its_branch",
    ),
    Mutant(
        "the shortest chain is taken first",
        "ladderize/streams/chains.py",
        "last: Block | None = max(free,",
        "last: Block | None = min(free,",
        "tests/passes/test_reroute.py::test_sources_stay_inside_the_stream",
    ),
    Mutant(
        "a chain may lie in the branch of another",
        "ladderize/streams/chains.py",
        "if adds & block.members:",
        "if adds <= set():",
        "tests/passes/test_properties.py::test_other_adds_are_no_blocks[gate-embedding]",
    ),
    Mutant(
        "two stacks on one trunk are joined",
        "ladderize/streams/find.py",
        "if before is None or run is None or run[-1] is not before:",
        "if before is None or run is None:",
        "tests/streams/test_find.py::test_two_stacks_on_one_trunk_do_not_become_one_stream",
    ),
    Mutant(
        "all segments have the number 0",
        "ladderize/streams/find.py",
        "segment=segment,",
        "segment=0,",
        "tests/streams/test_find.py::test_a_stage_with_another_shape_is_another_segment",
    ),
    Mutant(
        "a stale read across segments",
        "ladderize/streams/block.py",
        "source = max(block.index - staleness, first)",
        "source = max(block.index - staleness, 0)",
        "tests/report/test_report.py::test_segments",
    ),
    Mutant(
        "stale blocks are sought two blocks back",
        "ladderize/streams/existing_ladders.py",
        "range(MAX_STALENESS)",
        "range(2)",
        "tests/streams/test_refusals.py::test_stale_blocks_are_found_three_blocks_back",
    ),
    Mutant(
        "the branch of a stale block may hold its stream",
        "ladderize/streams/existing_ladders.py",
        "if not passed.isdisjoint(branch):",
        "if not passed:",
        "tests/streams/test_own_skips.py::test_a_ladder_of_them_is_left_alone",
    ),
    Mutant(
        "an own skip in a stale branch is a block of the stream",
        "ladderize/streams/existing_ladders.py",
        "if before and block.add in holder.members and before.add not in holder.members",
        "if before and block.add in holder.members and before.add in holder.members",
        "tests/streams/test_own_skips.py::test_a_ladder_of_them_is_left_alone",
    ),
    Mutant(
        "a block behind a stale one is not linked to it",
        "ladderize/streams/existing_ladders.py",
        "home[node] = home[writer.add]",
        "home[writer.add] = home[writer.add]",
        "tests/streams/test_refusals.py::test_the_stale_blocks_of_a_ladder_are_counted",
    ),
    Mutant(
        "gates of the skip path are not seen",
        "ladderize/streams/refusals.py",
        "if context.branch(block.anchor, [block.skip]) is not None:",
        "if context.branch(block.anchor, [block.skip]) is block:",
        "tests/streams/test_refusals.py::test_refused_with_its_reason",
    ),
    Mutant(
        "reads of an earlier block are not seen",
        "ladderize/streams/refusals.py",
        "if read is not block:",
        "if read is None:",
        "tests/streams/test_refusals.py::test_refused_with_its_reason",
    ),
    Mutant(
        "writes into the stream are not seen",
        "ladderize/streams/refusals.py",
        "if not stream.isdisjoint(written):",
        "if written and stream.isdisjoint(written):",
        "tests/streams/test_find.py::test_in_place_on_the_graph_input_is_refused",
    ),
    Mutant(
        "what follows a block may read in its branch",
        "ladderize/streams/refusals.py",
        "                if source in inside:",
        "                if source in blocks:",
        "tests/streams/test_own_skips.py::test_what_follows_a_block_must_not_read_in_its_branch",
    ),
    Mutant(
        "a shared value is a read of its own",
        "ladderize/streams/recurrence.py",
        "elif source in home and home[source] != home.get(node):",
        "elif source in home and home[source] != home.get(node, home[source]):",
        "tests/passes/test_reroute.py::test_a_shared_value_stays_what_the_earlier_branch_computes",
    ),
    Mutant(
        "attention leaves out the shared experts too",
        "ladderize/streams/left_out.py",
        "other.in_flight and not other.landed",
        "other.in_flight",
        "tests/streams/test_contributions.py::test_forms_of_connectivity",
    ),
    Mutant(
        "experts read what is ahead of them",
        "ladderize/streams/left_out.py",
        "if own.has_experts or (",
        "if (",
        "tests/streams/test_contributions.py::test_forms_of_connectivity",
    ),
    Mutant(
        "what lies between a sum and the next read is not done to a part of it",
        "ladderize/streams/partial_reads.py",
        "        return made[self.block.anchor]",
        "        return total",
        "tests/passes/test_farskip.py::test_an_instella_net_and_its_gradients",
    ),
    Mutant(
        "a summand is added as it is made",
        "ladderize/streams/partial_reads.py",
        "        value = call(step, {operand: value})",
        "        pass",
        "tests/passes/test_farskip.py::test_models_of_transformers_equal_the_eager_net",
    ),
    Mutant(
        "a sum behind a norm is taken apart",
        "ladderize/streams/summands.py",
        "not ops.only_scales(node) or",
        "ops.kind(node) is Kind.MIX or",
        "tests/streams/test_contributions.py::test_a_sum_is_split_behind_what_is_linear_alone",
    ),
    Mutant(
        "a difference is taken apart",
        "ladderize/streams/contributions.py",
        "if in_flight and not is_sum_of_summands(block):",
        "if not own:",
        "tests/streams/test_contributions.py::test_a_difference_is_left_out_as_a_whole",
    ),
    Mutant(
        "a sum with a part of another block goes unread",
        "ladderize/streams/recurrence.py",
        "            partial.see(node)",
        "            pass",
        "tests/passes/test_farskip.py::test_the_recurrence_finds_planted_faults",
    ),
    Mutant(
        "all collectives of a block are hidden by a read without its experts",
        "ladderize/report/builder.py",
        "found = self._of_parts if is_part else collectives",
        "found = collectives",
        "tests/passes/test_farskip.py::test_what_is_hidden_on_ranks",
    ),
    Mutant(
        "equations of sums are not compared",
        "ladderize/streams/recurrence.py",
        'for equations in ("sums", "anchors")',
        'for equations in ("anchors",)',
        "tests/passes/test_reroute.py::test_the_recurrence_check_finds_planted_faults",
    ),
    Mutant(
        "the skip is no part of the equation",
        "ladderize/streams/recurrence.py",
        "sympy.Eq(sum_symbol, skip + branch, evaluate=False)",
        "sympy.Eq(sum_symbol, branch, evaluate=False)",
        "tests/passes/test_reroute.py::test_the_recurrence_check_finds_planted_faults",
    ),
    Mutant(
        "another staleness than that of a block that is stale already is fine",
        "ladderize/streams/choose.py",
        "if wanted.sources.get(index, index) != source",
        "if index not in wanted.sources",
        "tests/streams/test_extended_ladders.py::test_what_takes_or_changes_stale_reads_is_an_error",
    ),
    Mutant(
        "each branch of a parallel block behind the first is a stale block",
        "ladderize/streams/stale_halves.py",
        "if start in ends and joined.kind in known:",
        "if start in ends:",
        "tests/streams/test_extended_ladders.py::test_every_second_block_might_be_half_of_a_parallel_one",
    ),
    Mutant(
        "a stale branch would read what is farthest behind its skip",
        "ladderize/streams/restore.py",
        "            number = steps.get(block.anchor, len(own))",
        "            number = len(own) - 1",
        "tests/streams/test_extended_ladders.py::test_stale_values_that_were_laid_out_anew",
    ),
    Mutant(
        "a standard net is restored across writes",
        "ladderize/streams/restore.py",
        "if position[node] < position[ahead]",
        "if position[node] < 0",
        "tests/streams/test_extended_ladders.py::test_what_cannot_be_restored_is_refused",
    ),
    Mutant(
        "more blocks than expected are fine",
        "ladderize/streams/choose.py",
        "if expected is None or total == expected:",
        "if expected is None or total >= expected:",
        "tests/frontends/test_backend.py::test_impossible_selections",
    ),
    Mutant(
        "blocks= counts from the next stream",
        "ladderize/streams/choose.py",
        "for number, block in enumerate(counted)}",
        "for number, block in enumerate(counted, 1)}",
        "tests/report/test_report.py::test_options_are_those_of_the_compilation",
    ),
    Mutant(
        "the last layers are one too few",
        "ladderize/config/selection.py",
        "range(count - self.last, count)",
        "range(count - self.last + 1, count)",
        "tests/streams/test_config.py::test_selection",
    ),
    Mutant(
        "an index may be the number of blocks",
        "ladderize/config/selection.py",
        "if not 0 <= i < count)",
        "if not 0 <= i <= count)",
        "tests/streams/test_config.py::test_selection_out_of_range",
    ),
    Mutant(
        "a percentage is rounded down",
        "ladderize/config/selection.py",
        "int(count * self.last_percent / 100 + 0.5)",
        "int(count * self.last_percent / 100)",
        "tests/streams/test_config.py::test_selection",
    ),
    Mutant(
        "the first layer reads past a prologue",
        "ladderize/streams/block.py",
        "if block.is_prologue and block.segment not in joined:",
        "if False:",
        "tests/streams/test_prologue.py::test_it_stays_standard_unless_blocks_are_named",
    ),
    Mutant(
        "positions start a stream",
        "ladderize/streams/static_starts.py",
        "sources = [by_add[node].skip]",
        "sources = list(context.sources[node])",
        "tests/streams/test_static_starts.py::test_positions_and_biases_start_no_stream",
    ),
    Mutant(
        "pieces joined in any order are the whole",
        "ladderize/graph/pieces.py",
        "whole in _wholes(part) and piece_of(part, whole) == piece",
        "whole in _wholes(part)",
        "tests/streams/test_joined_streams.py::test_parts_that_change_places_are_followed",
    ),
    Mutant(
        "of streams joined the blocks behind read as far back as the first one",
        "ladderize/streams/joins.py",
        "behind = staleness - (block.index - index)",
        "behind = staleness",
        "tests/streams/test_joins.py::test_single_blocks_go_on_from_joint_blocks",
    ),
    Mutant(
        "an end in any form is joined as it was earlier",
        "ladderize/streams/joins.py",
        "if self._steps(value, writer.add) not in forms:",
        "if self._steps(value, writer.add) is None:",
        "tests/streams/test_joins.py::test_what_is_joined_in_another_form_is_said",
    ),
    Mutant(
        "a part of what a block wrote is joined as if none had",
        "ladderize/streams/joins.py",
        "return None if self._is_written(value) else End(value)",
        "return End(value)",
        "tests/streams/test_joins.py::test_what_is_joined_in_another_form_is_said",
    ),
    Mutant(
        "a sum that is returned loses what was added to its parts",
        "ladderize/graph/cuts.py",
        'elif user.op == "output" or ops.holds_tensor(user):',
        "elif ops.holds_tensor(user):",
        "tests/streams/test_joined_streams.py::test_sums_that_are_returned_as_well",
    ),
    Mutant(
        "a named block that can only stay standard does",
        "ladderize/streams/cut_streams.py",
        "if not (config.names_blocks and config.strict and config.staleness):",
        "if not (config.blocks == [] and config.strict and config.staleness):",
        "tests/streams/test_joins.py::test_what_is_joined_in_another_form_is_said",
    ),
    Mutant(
        "what an earlier branch computed is a read on the side",
        "ladderize/streams/fresh_reads.py",
        "elif node in homes or node in context.static:",
        "elif node in context.static:",
        "tests/streams/test_joins.py::test_reads_on_the_side_are_said",
    ),
    Mutant(
        "what joint branches share moves in one stream alone",
        "ladderize/streams/specification.py",
        "fresh: moved[fresh] for fresh in shared & moved.keys()",
        "fresh: fresh for fresh in shared",
        "tests/streams/test_joined_streams.py::test_parts_that_change_places_are_followed",
    ),
    Mutant(
        "indices that fall make a layer",
        "ladderize/streams/layers.py",
        "return self.most_of_a_list if known == sorted(known) else min(len(known), 1)",
        "return self.most_of_a_list",
        "tests/streams/test_find.py::test_layers_of_few_layers_with_more_sublayers",
    ),
    Mutant(
        "writes are no sources of what reads them",
        "ladderize/graph/dataflow.py",
        "else tuple(dict.fromkeys((*node.all_input_nodes, *writes.get(node, {}).values())))",
        "else tuple(dict.fromkeys(node.all_input_nodes))",
        "tests/graph/test_dataflow.py::test_the_last_write_before_a_reader_is_its_source",
    ),
    Mutant(
        "a write may pass what reads before it",
        "ladderize/graph/dataflow.py",
        "ahead, since[storage] = since.get(storage, []), [node]",
        "ahead, since[storage] = [], [node]",
        "tests/passes/test_defer_waits.py::test_writes_into_memory_keep_their_place",
    ),
    Mutant(
        "setitem writes nothing",
        "ladderize/graph/writes.py",
        'is_in_place = name == "setitem" or (',
        "is_in_place = (",
        "tests/graph/test_dataflow.py::test_the_last_write_before_a_reader_is_its_source",
    ),
    Mutant(
        "+= is no add",
        "ladderize/graph/ops.py",
        '_ADDS = frozenset({"add", "iadd", "add_"})',
        '_ADDS = frozenset({"add", "add_"})',
        "tests/streams/test_find.py::test_in_place_on_the_graph_input_is_refused",
    ),
    Mutant(
        "-= becomes a sum",
        "ladderize/graph/ops.py",
        "operator.isub: operator.sub,",
        "operator.isub: operator.add,",
        "tests/passes/test_functionalize.py::test_values_and_dtypes_stay",
    ),
    Mutant(
        "a layer norm mixes",
        "ladderize/graph/ops.py",
        '"""layer_norm native_layer_norm rms_norm',
        '"""native_layer_norm rms_norm',
        "tests/streams/test_find.py::test_post_norm_blocks_are_one_segment",
    ),
)

# ---- passes ----------------------------------------------------------------------------------

PASSES = (
    Mutant(
        "the writes of a packet are not seen",
        "ladderize/graph/writes.py",
        "for schema in schemas_of(node))",
        "for schema in schemas_of(node)[1:])",
        "tests/graph/test_dataflow.py::test_what_is_written_into_a_buffer_is_read_stale",
    ),
    Mutant(
        "a Triton kernel writes nothing",
        "ladderize/graph/writes.py",
        'endswith("_mutation")',
        'endswith("_mutations")',
        "tests/graph/test_writes.py::test_a_triton_kernel_writes_whatever_it_is_given",
    ),
    Mutant(
        "casts that return their operand stay",
        "ladderize/passes/drop_casts.py",
        "        is_plain\n",
        "        not is_plain\n",
        "tests/passes/test_properties.py::test_a_traced_norm_that_casts_twice",
    ),
    Mutant(
        "casts to another dtype are dropped",
        "ladderize/passes/drop_casts.py",
        "(value.dtype, value.device, value.layout)",
        "(before.dtype, value.device, value.layout)",
        "tests/passes/test_drop_casts.py::test_values_and_dtypes_stay",
    ),
    Mutant(
        "views that are read later are no hazard",
        "ladderize/passes/functionalize.py",
        "and any(position[user] > position[node] for user in other.users)",
        "and any(position[user] < position[node] for user in other.users)",
        "tests/streams/test_find.py::test_the_first_write_under_a_view_is_refused",
    ),
    Mutant(
        "an input may be overwritten",
        "ladderize/passes/functionalize.py",
        'other.op in ("placeholder", "get_attr")',
        'other.op in ("get_attr",)',
        "tests/streams/test_find.py::test_in_place_on_the_graph_input_is_refused",
    ),
    Mutant(
        "the first later reader reads the old value",
        "ladderize/passes/functionalize.py",
        "for user in later:",
        "for user in later[1:]:",
        "tests/passes/test_functionalize.py::test_values_and_dtypes_stay",
    ),
    Mutant(
        "an in-place op may change the dtype",
        "ladderize/passes/functionalize.py",
        "return tensors[0].dtype",
        "return None",
        "tests/passes/test_functionalize.py::test_values_and_dtypes_stay",
    ),
    Mutant(
        "one of two reads is left fresh",
        "ladderize/passes/reroute.py",
        "in move.readers:\n                reader.replace_input_with(move.fresh",
        "in move.readers[:1]:\n                reader.replace_input_with(move.fresh",
        "tests/graph/test_dataflow.py::test_caches_of_the_model_are_read_stale",
    ),
    Mutant(
        "reads move one block too little",
        "ladderize/passes/reroute.py",
        "path = reads.stream.blocks[reads.sources[index] : index + 1]",
        "path = reads.stream.blocks[reads.sources[index] + 1 : index + 1]",
        "tests/passes/test_reroute.py::test_values_are_those_of_the_eager_ladder",
    ),
    Mutant(
        "the order of memory is not kept",
        "ladderize/passes/node_order.py",
        "followers = {node: list(later) for node, later in behind.items()}",
        "followers = {node: list(later) for node, later in behind.items() if not waits}",
        "tests/passes/test_defer_waits.py::test_writes_into_memory_keep_their_place",
    ),
    Mutant(
        "the second wait stays",
        "ladderize/passes/join_waits.py",
        "for wait in waits[1:]:",
        "for wait in waits[2:]:",
        "tests/passes/test_defer_waits.py::test_a_second_wait_is_joined_to_the_first",
    ),
    Mutant(
        "waits that were not put off are pinned",
        "ladderize/passes/pin_order.py",
        "if before is not own[node].launch:",
        "if before is own[node].launch:",
        "tests/passes/test_defer_waits.py::test_pins_follow_the_order",
    ),
    Mutant(
        "dynamic sizes are not compared",
        "ladderize/passes/pin_order.py",
        "return user if _form(operands[0]) == _form(operands[1]) else None",
        "return user",
        "tests/passes/test_defer_waits.py::test_without_control_deps_dynamic_sizes_are_compared",
    ),
    Mutant(
        "the next matmul does not wait for a gather",
        "ladderize/passes/pin_order.py",
        "elif flying and node in work and behind < position[flying[-1]]:",
        "elif flying and node not in work and behind < position[flying[-1]]:",
        "tests/passes/test_schedule.py::test_waits_and_early_gathers_are_pinned",
    ),
    Mutant(
        "regions without an add are taken apart",
        "ladderize/passes/inline_regions.py",
        "return bool(hidden_sums(gm, node)) and can_inline(gm, node)",
        "return can_inline(gm, node)",
        "tests/streams/test_higher_order.py::test_a_region_that_holds_no_add_is_left_alone",
    ),
    Mutant(
        "inlined nodes forget their region",
        "ladderize/graph/higher_order.py",
        "if around is not None:",
        "if around is None:",
        "tests/streams/test_higher_order.py::test_taking_apart_and_putting_together_keeps_the_values",
    ),
    Mutant(
        "a region returns only what is not read inside",
        "ladderize/passes/outline_regions.py",
        "results = [node for node in nodes if any(user not in inside for user in node.users)]",
        "results = [node for node in nodes if all(user not in inside for user in node.users)]",
        "tests/streams/test_higher_order.py::test_only_some_layers_are_checkpointed",
    ),
    Mutant(
        "the operands of a product are swapped",
        "ladderize/passes/spell_sums.py",
        "made = gm.graph.call_function(product, (left, right))",
        "made = gm.graph.call_function(product, (right, left))",
        "tests/passes/test_properties.py::test_sums_in_odd_spellings",
    ),
    Mutant(
        "weights of norms between reductions are not copied to the ranks' streams",
        "ladderize/sharding/own_streams.py",
        "yield BranchEntry(node, value, needs_copy=True)",
        "yield BranchEntry(node, value, needs_copy=False)",
        "tests/sharding/test_variants.py::test_every_nth_block_is_reduced",
    ),
    Mutant(
        "the gradient of a stream that ranks begin alike is one rank's",
        "ladderize/sharding/own_streams.py",
        "copies_skip = not is_own and block.skip in self.gradients",
        "copies_skip = False",
        "tests/sharding/test_variants.py::test_every_nth_block_is_reduced",
    ),
    Mutant(
        "branches of own streams are copied as if all ranks had them alike",
        "ladderize/sharding/own_streams.py",
        "replace(e, needs_copy=False) if e.value in self.own else e for e in entries",
        "e for e in entries",
        "tests/sharding/test_variants.py::test_every_nth_block_is_reduced",
    ),
    Mutant(
        "the streams of the ranks are summed up, not averaged",
        "ladderize/passes/shard.py",
        "(skip, self.plan.num_ranks))",
        "(skip, 1))",
        "tests/sharding/test_variants.py::test_every_nth_block_is_reduced",
    ),
    Mutant(
        "a later sum adds to what a reduction had not made yet",
        "ladderize/passes/shard.py",
        "skip = means.get(skip, skip)",
        "pass",
        "tests/sharding/test_variants.py::test_every_nth_block_is_reduced",
    ),
    Mutant(
        "branches behind a norm of the sum are put beside those ahead of it",
        "ladderize/streams/layer_mates.py",
        "if is_next and (not are_summands or _adds_to(layer[-1], block)):",
        "if is_next:",
        "tests/sharding/test_variants.py::test_post_norm_layers_have_no_parallel_form",
    ),
    Mutant(
        "the end of a stream that is itself reduced is not seen",
        "ladderize/streams/gains.py",
        "inside.update(ends)",
        "inside.update(())",
        "tests/ranks/test_reduced_sums.py::test_a_stream_that_is_itself_reduced_is_left_as_it_is",
    ),
    Mutant(
        "a parallel layer forgets what its attention adds",
        "ladderize/sharding/layer_sums.py",
        "partials=(*before.partials, *found.partials),",
        "partials=found.partials,",
        "tests/sharding/test_variants.py::test_one_reduction_a_layer",
    ),
    Mutant(
        "a reduction is not waited for",
        "ladderize/passes/shard.py",
        "total = insert_after(graph, total, parallel_ops.wait, (total,))",
        "pass",
        "tests/sharding/test_structure.py::test_one_copy_and_one_reduction_a_branch",
    ),
    Mutant(
        "a bias is lost behind the reduction",
        "ladderize/passes/shard.py",
        "for bias in reduction.biases:",
        "for bias in reduction.biases[1:]:",
        "tests/sharding/test_structure.py::test_biases_are_added_after_the_wait",
    ),
    Mutant(
        "what enters a branch is not copied",
        "ladderize/passes/shard.py",
        "if entry.needs_copy:",
        "if entry.needs_copy and entry.index:",
        "tests/sharding/test_structure.py::test_one_copy_and_one_reduction_a_branch",
    ),
    Mutant(
        "logits are gathered along the dim before",
        "ladderize/passes/shard_vocabulary.py",
        "args = (gather.node, first, gather.dim, *ranks)",
        "args = (gather.node, first, gather.dim - 1, *ranks)",
        "tests/sharding/test_vocabulary.py::test_whole_logits_are_gathered_only_where_needed",
    ),
)

# ---- sharding --------------------------------------------------------------------------------

SHARDING = (
    Mutant(
        "rows of other ranks' experts count",
        "ladderize/sharding/rules/own_rows.py",
        "visit.masked |= {",
        "_ = {",
        "tests/sharding/test_experts.py::test_a_norm_of_what_experts_make",
    ),
    Mutant(
        "what enters rows of experts is not copied",
        "ladderize/sharding/rules/experts.py",
        "        visit.enter(x)",
        "        pass",
        "tests/sharding/test_experts.py::test_gradients_equal_those_of_one",
    ),
    Mutant(
        "a rank takes the rows of the first one",
        "ladderize/graph/expert_ops.py",
        "(place + bounds[:1]) % x.shape[0]",
        "place",
        "tests/sharding/test_experts.py::test_a_norm_of_what_experts_make",
    ),
    Mutant(
        "a slice is off by one",
        "ladderize/sharding/placement.py",
        "mine = range(start + rank * share, start + (rank + 1) * share)",
        "mine = range(start + rank * share + 1, start + (rank + 1) * share + 1)",
        "tests/sharding/test_structure.py::test_take_local_takes_its_share_of_each_chunk",
    ),
    Mutant(
        "chunks begin where the share ends",
        "ladderize/sharding/placement.py",
        "start += length",
        "start += share",
        "tests/sharding/test_structure.py::test_take_local_takes_its_share_of_each_chunk",
    ),
    Mutant(
        "gradients flow only where all sources carry them",
        "ladderize/sharding/plan.py",
        "elif any(source in carries for source in node.all_input_nodes):",
        "elif all(source in carries for source in node.all_input_nodes):",
        "tests/sharding/test_structure.py::test_one_copy_and_one_reduction_a_branch",
    ),
    Mutant(
        "partial outputs of a branch are not reduced",
        "ladderize/sharding/plan.py",
        "if not pending:",
        "if pending:",
        "tests/sharding/test_structure.py::test_one_copy_and_one_reduction_a_branch",
    ),
    Mutant(
        "readers may want a parameter in two ways",
        "ladderize/sharding/propagate.py",
        "if other.demands.get(parameter, REPLICATE) != wanted:",
        "if other.demands.get(parameter, wanted) == REPLICATE:",
        "tests/sharding/test_structure.py::test_a_weight_wanted_in_two_placements_stays_whole",
    ),
    Mutant(
        "query heads read key heads in turn",
        "ladderize/sharding/rules/table.py",
        "rows = [[h // share for h in range",
        "rows = [[h % share for h in range",
        "tests/sharding/test_structure.py::test_shared_heads",
    ),
    Mutant(
        "transpose has no rule",
        "ladderize/sharding/rules/table.py",
        "    aten.transpose: layout.transpose,\n",
        "",
        "tests/sharding/test_structure.py::test_only_branches_are_divided",
    ),
    Mutant(
        "a transposed dim stays where it was",
        "ladderize/sharding/rules/layouts.py",
        "return value.at({a: b, b: a}.get(shard.dim, shard.dim))",
        "return value.at({a: b}.get(shard.dim, shard.dim))",
        "tests/sharding/test_structure.py::test_only_branches_are_divided",
    ),
    Mutant(
        "heads need not divide",
        "ladderize/sharding/rules/layouts.py",
        "if n % visit.num_ranks and i not in place.shard.whole]",
        "if n < visit.num_ranks and i not in place.shard.whole]",
        "tests/sharding/test_structure.py::test_every_reason_is_named_with_its_place",
    ),
    Mutant(
        "a part holds the chunk before it",
        "ladderize/sharding/rules/parts.py",
        "inside = [i for i, end in enumerate(ends) if first < end <= last]",
        "inside = [i for i, end in enumerate(ends) if first <= end < last]",
        "tests/sharding/test_structure.py::test_the_parts_of_a_fused_weight_stay_divided",
    ),
    Mutant(
        "addmm has its outputs in rows",
        "ladderize/sharding/rules/products.py",
        "aten.addmm: Product(x=1, weight=2, bias=0, outputs=-1)",
        "aten.addmm: Product(x=1, weight=2, bias=0, outputs=-2)",
        "tests/sharding/test_structure.py::test_fused_qkv_is_divided_in_three_chunks",
    ),
    Mutant(
        "the bias of a row-parallel product is dropped",
        "ladderize/sharding/rules/products.py",
        "return Value(Partial(), biases=(bias,))",
        "return Value(Partial())",
        "tests/sharding/test_structure.py::test_biases_are_added_after_the_wait",
    ),
    Mutant(
        "a partial value passes through a relu",
        "ladderize/sharding/rules/partials.py",
        "aten.dropout: _is_off,",
        "aten.dropout: _is_off, aten.relu: lambda *_: True,",
        "tests/sharding/test_structure.py::test_own_nets[deep-2]",
    ),
    Mutant(
        "dims of size 1 at the end are lost",
        "ladderize/sharding/views.py",
        "groups.append(DimGroup(last.old + rest_old, last.new + rest_new))",
        "groups.append(DimGroup(last.old, last.new))",
        "tests/sharding/test_structure.py::test_dim_groups",
    ),
    Mutant(
        "each rank takes the words of the next",
        "ladderize/sharding/placement.py",
        "tuple((rank * share,) for rank in range(num_ranks))",
        "tuple(((rank + 1) * share,) for rank in range(num_ranks))",
        "tests/sharding/test_vocabulary.py::test_the_rank_enters_by_one_input",
    ),
    Mutant(
        "a vocabulary need not divide",
        "ladderize/sharding/vocabulary.py",
        "if self.length % num_ranks:",
        "if self.length < num_ranks:",
        "tests/sharding/test_vocabulary.py::test_what_stays_whole_is_listed",
    ),
    Mutant(
        "every table is a vocabulary",
        "ladderize/sharding/vocabulary.py",
        "if length == max(lengths)]",
        "if length <= max(lengths)]",
        "tests/sharding/test_vocabulary.py::test_only_the_vocabulary_is_divided",
    ),
)

# ---- collectives in flight -------------------------------------------------------------------

COLLECTIVES = (
    Mutant(
        "more buffers are in flight than allowed",
        "ladderize/passes/schedule.py",
        "bisect.bisect(later, self.position[pair.wait]) + max_ahead",
        "bisect.bisect(later, self.position[pair.wait]) + max_ahead + 1",
        "tests/passes/test_schedule.py::test_no_more_buffers_in_flight_than_allowed",
    ),
    Mutant(
        "a wait is put off past what it makes possible",
        "ladderize/passes/schedule.py",
        "if self._durations.acts(reader)",
        "if reader in self._durations.work",
        "tests/passes/test_defer_waits.py::test_the_wait_comes_right_after_that_launch",
    ),
    Mutant(
        "a launch stays behind work that it does not need",
        "ladderize/passes/schedule.py",
        "if end - start > leading:",
        "if end - start > leading + 4:",
        "tests/passes/test_schedule.py::test_combine_and_dispatch_hide_behind_one_attention",
    ),
    Mutant(
        "a wait stands at the end of the work",
        "ladderize/passes/lane_times.py",
        "key=lambda i, end=end: abs(done[i] - end)",
        "key=lambda i, end=end: abs(done[i] - done[-1])",
        "tests/passes/test_schedule.py::test_each_has_half_a_block_to_hide_behind",
    ),
    Mutant(
        "gathers of other groups are brought forward",
        "ladderize/passes/transfer_chains.py",
        "return name not in GATHERS or own == group",
        "return True",
        "tests/passes/test_schedule.py::test_gathers_of_other_groups_are_left_alone",
    ),
    Mutant(
        "any work may lead from a wait to a launch",
        "ladderize/passes/transfer_chains.py",
        "return work < self._durations.little",
        "return True",
        "tests/passes/test_schedule.py::test_staleness_two_has_a_block_for_each",
    ),
    Mutant(
        "gradients of weights run ahead of a launch",
        "ladderize/passes/node_order.py",
        "if node not in needed and (node in durations.work or not late.isdisjoint(reads)):",
        "if node not in needed and not late.isdisjoint(reads):",
        "tests/passes/test_schedule.py::test_a_launch_comes_ahead_of_gradients_of_weights",
    ),
    Mutant(
        "what a dispatch needs stays behind attention",
        "ladderize/passes/node_order.py",
        "ranks[node] = (place, position[node])",
        "ranks[node] = (position[node], position[node])",
        "tests/passes/test_schedule.py::test_what_a_dispatch_needs_runs_ahead_of_what_it_does_not",
    ),
    Mutant(
        "what is stored through another parameter is lost",
        "ladderize/backends/emitted/events.py",
        "if p != param and given.get(p, NOTHING) & storages]",
        "if p != param and not given]",
        "tests/backends/test_emitted_order.py::test_a_cat_that_is_read_as_a_whole_carries_its_parts",
    ),
    Mutant(
        "the counts of tokens are no link of the chain",
        "ladderize/passes/transfer_chains.py",
        "while following := self._after(chain[-1]):",
        "while len(chain) < 2 and (following := self._after(chain[-1])):",
        "tests/passes/test_schedule.py::test_counts_are_a_link_of_the_chain",
    ),
    Mutant(
        "a wait that hides nothing passes in emitted code",
        "ladderize/backends/emitted/checks.py",
        "if any(launch in needs.get(later, ()) for later in range(wait + 1, product + 1)):",
        "if wait:",
        "tests/backends/test_emitted_order.py"
        "::test_a_dispatch_that_could_hide_behind_a_product_is_found",
    ),
    Mutant(
        "a launch needs no wait",
        "ladderize/graph/in_flight.py",
        "if len(waits) != 1:",
        "if len(waits) > 1:",
        "tests/passes/test_defer_waits.py::test_a_launch_without_wait_is_refused",
    ),
    Mutant(
        "all groups are one channel",
        "ladderize/graph/in_flight.py",
        "return launched_by(launch), group_name_of(launch)",
        'return launched_by(launch), ""',
        "tests/passes/test_defer_waits.py::test_only_collectives_of_one_channel_are_paired",
    ),
    Mutant(
        "writes into a buffer in flight are no race",
        "ladderize/backends/emitted/checks.py",
        "if flight.storage in event.touches:",
        "if flight.storage in event.reads:",
        "tests/backends/test_emitted.py::test_touching_a_buffer_in_flight_is_a_race",
    ),
    Mutant(
        "the event before a wait is not looked at",
        "ladderize/backends/emitted/checks.py",
        "program.events[flight.launch + 1 : flight.wait]",
        "program.events[flight.launch + 1 : flight.wait - 1]",
        "tests/backends/test_emitted.py::test_touching_a_buffer_in_flight_is_a_race",
    ),
    Mutant(
        "the second of two waits is not looked at",
        "ladderize/backends/emitted/checks.py",
        "for launch in launches:",
        "for launch in launches[:1]:",
        "tests/backends/test_emitted_order.py::test_adjacent_waits_of_a_deeper_schedule",
    ),
    Mutant(
        "an early wait is not reported",
        "ladderize/backends/emitted/checks.py",
        "if launch in wait_of and wait_of[launch] < following:",
        "if launch in wait_of and wait_of[launch] > following:",
        "tests/backends/test_emitted_order.py::test_an_early_wait_is_found",
    ),
    Mutant(
        "a wait is taken for that of the next launch",
        "ladderize/backends/emitted/events.py",
        "*added, pending, _ = map(storages_of, args)",
        "*added, _, pending = map(storages_of, args)",
        "tests/backends/test_emitted_order.py::test_opaque_waits_have_their_place_in_the_order",
    ),
    Mutant(
        "a kernel that writes a part writes all",
        "ladderize/backends/emitted/events.py",
        "writes[storage] = writes.get(storage, NOTHING) | content | self.record.kept(storage)",
        "writes[storage] = writes.get(storage, NOTHING) | content",
        "tests/backends/test_emitted_order.py::test_writing_a_part_keeps_the_rest",
    ),
    Mutant(
        "what was stored counts as read at entry",
        "ladderize/backends/emitted/kernels.py",
        "if name in self.pointers and name not in self.stored:",
        "if name in self.pointers:",
        "tests/backends/test_emitted_kernels.py::test_reductions_aliases_and_variables_used_twice",
    ),
    Mutant(
        "the index of a store is not read",
        "ladderize/backends/emitted/kernels.py",
        "{target if op else target.split('[', 1)[1]}",
        "{target if op else ''}",
        "tests/backends/test_emitted_kernels.py::test_cpp_statements",
    ),
    Mutant(
        "ranks that differ agree",
        "ladderize/frontends/agreement.py",
        "if len(differ) > 1 or",
        "if len(differ) > 2 or",
        "tests/ranks/test_agreement.py::"
        "test_ranks_that_differ_hear_it_at_once_and_see_the_difference",
    ),
    Mutant(
        "a note of a rank that went on alone is read later",
        "ladderize/frontends/agreement.py",
        "if self._claim(key, self.me, _READ) == _READ:",
        "if self._claim(key, self.me, _READ):",
        "tests/ranks/test_agreement.py::test_a_rank_goes_on_alone_if_all_have_agreed_before",
    ),
    Mutant(
        "an error of another type is not told to the other ranks",
        "ladderize/frontends/agreement.py",
        "    except Exception as error:\n        said",
        "    except LadderError as error:\n        said",
        "tests/ranks/test_agreement.py::"
        "test_an_error_of_any_type_in_one_ranks_rewrite_is_raised_on_all",
    ),
    Mutant(
        "options are no part of what ranks agree on",
        "ladderize/frontends/graph_compilation.py",
        "    lines = settings_of(state.config)\n    lines += [",
        "    lines = [",
        "tests/ranks/test_agreement.py::test_options_that_differ_are_an_error_on_all"
        "[layers-+layers = last:1-False]",
    ),
    Mutant(
        "compressed archives are unpacked",
        "ladderize/compat/archive.py",
        "    if packed:\n",
        "    if not packed:\n",
        "tests/frontends/test_hostile_files.py::test_an_archive_that_would_grow_is_not_unpacked",
    ),
    Mutant(
        "files are read whole before their size is known",
        "ladderize/compat/json_files.py",
        "            if any(size > most_bytes for size in _sizes(file)):",
        "            if len(file.read()) > most_bytes:",
        "tests/frontends/test_hostile_files.py::test_json_that_is_too_large_takes_no_memory",
    ),
    Mutant(
        "what reaches past a model runs the standard net",
        "ladderize/frontends/compile.py",
        "    around = [model, *find_delegates(model)]",
        "    around = [model]",
        "tests/frontends/test_delegates.py",
    ),
    Mutant(
        "eight graphs are for all models together",
        "ladderize/frontends/delegates.py",
        "    forward.__code__ = forward.__code__.replace()\n",
        "",
        "tests/frontends/test_delegates.py",
    ),
    Mutant(
        "another backend compiles the standard net of a ladder",
        "ladderize/frontends/delegates.py",
        "        if is_traced and self._compiled_call_impl is not None and",
        "        if False and",
        "tests/frontends/test_delegates.py",
    ),
    Mutant(
        "the error of a batch stays in the log",
        "ladderize/compat/paged_cache.py",
        "            raise status.fatal_error",
        "            return",
        "tests/frontends/test_continuous_batching.py::test_an_error_of_the_compilation_is_raised",
    ),
    Mutant(
        "the graph of a batch fits it alone",
        "ladderize/compat/paged_cache.py",
        "            _mark_sizes(processor.inputs_and_outputs)\n",
        "",
        "tests/frontends/test_continuous_batching.py",
    ),
    Mutant(
        "a flight across CUDA graphs is fine",
        "ladderize/backends/emitted/checks.py",
        "if launch.partition != wait.partition:",
        "if False:",
        "tests/backends/test_emitted.py",
    ),
    Mutant(
        "an input is not read where it is aligned",
        "ladderize/backends/emitted/events.py",
        "self.record.add(EventKind.ALIGN, op, call, touched)",
        "pass",
        "tests/backends/test_emitted.py",
    ),
    Mutant(
        "with a mesh no weight is static",
        "ladderize/compat/frames.py",
        "            after.meta[_TENSOR_DICT] = before.meta[_TENSOR_DICT]",
        "            pass",
        "tests/ranks/test_call_costs.py",
    ),
    Mutant(
        "every rank slices the first part",
        "ladderize/passes/slice_parameters.py",
        "bounds = (placement.dim, entries.start, entries.stop)",
        "bounds = (placement.dim, 0, len(entries))",
        "tests/ranks/test_tensor_parallel.py::test_gradients_equal_the_eager_ladders",
    ),
    Mutant(
        "every call looks at all weights",
        "ladderize/frontends/local_parameters.py",
        "if PARTS.released or self._first is None or",
        "if True or",
        "tests/ranks/test_call_costs.py",
    ),
    Mutant(
        "a weight in other memory is not noticed",
        "ladderize/frontends/local_parameters.py",
        "or self.pointer != full.data_ptr():",
        "or False:",
        "tests/frontends/test_local_parameters.py",
    ),
    Mutant(
        "other memory at the same address is not noticed",
        "ladderize/frontends/local_parameters.py",
        "return self.memory is None or self.memory == _memory(full)",
        "return True",
        "tests/frontends/test_local_parameters.py",
    ),
    Mutant(
        "a weight written in place is not noticed",
        "ladderize/frontends/local_parameters.py",
        "if self.version != _version(full) or",
        "if",
        "tests/frontends/test_local_parameters.py",
    ),
    Mutant(
        "harmless all-reduces are refused",
        "ladderize/passes/gradient_checks.py",
        "if is_all_reduce(node) and _needs_gradient(node)",
        "if is_all_reduce(node)",
        "tests/ranks/test_sharded_refusals.py::test_an_all_reduce_without_a_gradient_is_let_through",
    ),
)

# ---- ahead of time, and local parts ----------------------------------------------------------

FILES = (
    Mutant(
        "code may stand for a size",
        "ladderize/compat/archive.py",
        "if isinstance(size, str) and not is_size(size):",
        "if isinstance(size, bytes) and not is_size(size):",
        "tests/frontends/test_program_files.py::test_no_archive_runs_code",
    ),
    Mutant(
        "objects in an archive are not seen",
        "ladderize/compat/archive.py",
        "if _OBJECTS.search(name):",
        "if _OBJECTS.match(name):",
        "tests/frontends/test_program_files.py::test_no_archive_runs_code",
    ),
    Mutant(
        "caches must be in the checkpoint",
        "ladderize/frontends/sharded/checkpoint.py",
        "elif entry.is_persistent:",
        "else:",
        "tests/frontends/test_checkpoint.py::test_what_is_not_persistent_need_not_be_there",
    ),
    Mutant(
        "a tensor may be in two files",
        "ladderize/frontends/sharded/checkpoint.py",
        "if name in homes:",
        "if name in homes and homes[name] == file:",
        "tests/frontends/test_checkpoint.py::test_a_name_in_two_files",
    ),
    Mutant(
        "a name that its file lacks is fine",
        "ladderize/frontends/sharded/checkpoint.py",
        "if known[file] and n not in known[file]]",
        "if not known[file] and n not in known[file]]",
        "tests/frontends/test_checkpoint.py::test_every_fault_of_the_files_is_listed",
    ),
    Mutant(
        "the hash of a file is not compared",
        "ladderize/frontends/sharded/directory.py",
        "elif _hash(path) != wanted.sha256:",
        "elif not wanted.sha256:",
        "tests/frontends/test_directory.py::test_a_changed_file_is_told",
    ),
    Mutant(
        "a failure leaves half a directory",
        "ladderize/frontends/sharded/directory.py",
        "shutil.rmtree(folder, ignore_errors=True)",
        "pass",
        "tests/frontends/test_program_files.py::test_a_failure_on_the_way_leaves_nothing",
    ),
    Mutant(
        "every rank's file is that of rank 0",
        "ladderize/frontends/sharded/program_files.py",
        "parts = read_entries(entries, source, names, rank, num_ranks, ",
        "parts = read_entries(entries, source, names, 0, num_ranks, ",
        "tests/frontends/test_program_files.py::test_two_ranks_load_what_was_written",
    ),
    Mutant(
        "chunks are read over one another",
        "ladderize/frontends/sharded/state.py",
        "start += len(part)",
        "start = len(part)",
        "tests/frontends/test_checkpoint.py::test_three_chunks_are_read_one_behind_the_other",
    ),
    Mutant(
        "what is whole in parts is not written down",
        "ladderize/frontends/sharded/manifest.py",
        "whole=list(placement.whole)",
        "whole=[]",
        "tests/frontends/test_checkpoint.py::test_entries_are_data",
    ),
    Mutant(
        "every rank reads the slices of rank 0",
        "ladderize/frontends/sharded/materialize.py",
        "parts[entry.name] = entry.read(tensor, rank, num_ranks, device)",
        "parts[entry.name] = entry.read(tensor, 0, num_ranks, device)",
        "tests/frontends/test_checkpoint.py::test_a_rank_reads_its_slices",
    ),
    Mutant(
        "a residual that is added whole is taken out of the all-reduce",
        "ladderize/passes/reduce_branches.py",
        "is_whole = is_awaited and parts == _parts_that_add_up(launch)",
        "is_whole = is_awaited",
        "tests/ranks/test_reduced_sums.py::test_a_residual_that_the_ranks_do_not_share_is_refused",
    ),
    Mutant(
        "a stale read that hides nothing is kept",
        "ladderize/streams/gains.py",
        "if hides.isdisjoint(parts)",
        "if not hides",
        "tests/ranks/test_reduced_sums.py::test_blocks_that_hide_nothing_read_fresh",
    ),
    Mutant(
        "the waits of a shard are not deferred",
        "ladderize/frontends/sharded/module.py",
        "run_pass(gm, DeferWaits(), log)",
        "pass",
        "tests/ranks/test_parallelize.py::test_it_compiles_in_the_same_order",
    ),
    Mutant(
        "dtypes of inputs are not compared",
        "ladderize/frontends/sharded/module.py",
        "if value.dtype != example.dtype:",
        "if value.dtype.itemsize > 8:",
        "tests/ranks/test_parallelize.py::test_inputs_that_were_not_traced_are_refused",
    ),
    Mutant(
        "the mode may change where dropout was traced",
        "ladderize/frontends/sharded/module.py",
        "if _training_flag(node) is not mode]",
        "if _training_flag(node) is mode]",
        "tests/ranks/test_parallelize.py::test_a_program_keeps_the_mode_it_was_traced_in",
    ),
)

# ---- what is told ----------------------------------------------------------------------------

CHECKS = (
    Mutant(
        "values are always right",
        "ladderize/testing/verify/check_values.py",
        "if largest <= allowed:",
        "if largest >= 0:",
        "tests/testing/test_verify_checks.py::test_a_read_that_changes_values",
    ),
    Mutant(
        "a value may read more than it should",
        "ladderize/testing/verify/structure.py",
        "if is_ != should[value.node]:",
        "if not is_ >= should[value.node]:",
        "tests/testing/test_verify_checks.py::test_a_read_that_changes_no_value",
    ),
    Mutant(
        "sizes are not compared",
        "ladderize/testing/verify/structure.py",
        "return all(not isinstance(size, int) or size == found for size, found in sizes)",
        "return all(isinstance(size, int) or size == found for size, found in sizes)",
        "tests/testing/test_verify.py::test_values_of_another_form_than_the_graph_says",
    ),
    Mutant(
        "weights are not compared",
        "ladderize/testing/verify/check_tensors.py",
        "elif not torch.equal(held.detach(), expected.detach()):",
        "elif not torch.equal(held.detach(), held.detach()):",
        "tests/testing/test_verify_checks.py::test_a_weight_that_changes_values",
    ),
    Mutant(
        "ranks may meet at different collectives",
        "ladderize/testing/verify/lockstep.py",
        "len({call.form for call in met}) > 1:",
        "len({call.form for call in met}) > 2:",
        "tests/testing/test_verify.py::test_collectives_in_another_order_on_one_rank",
    ),
    Mutant(
        "collectives may be over any group",
        "ladderize/testing/verify/check_collectives.py",
        "if name != GROUP:",
        'if name == "":',
        "tests/testing/test_faults.py::test_a_planted_fault_is_named",
    ),
    Mutant(
        "every launch is hidden",
        "ladderize/testing/verify/check_collectives.py",
        "if any(position[launch] < at < position[wait] for at in compute):",
        "if any(position[launch] < at for at in compute):",
        "tests/testing/test_faults.py::test_a_planted_fault_is_named",
    ),
    Mutant(
        "what a call leaves behind is not compared",
        "ladderize/testing/verify/check_values.py",
        "if not error <= allowed and self.wrong is None:",
        "if not error <= error and self.wrong is None:",
        "tests/testing/test_faults.py::test_a_planted_fault_is_named",
    ),
    Mutant(
        "gradients are not compared",
        "ladderize/testing/verify/check_gradients.py",
        "if not error <= _CLOSE[dtype]]",
        "if not error <= error]",
        "tests/testing/test_faults.py::test_a_planted_fault_is_named",
    ),
    Mutant(
        "the ends of ranges are not tried",
        "ladderize/testing/verify/sizes.py",
        "further = further[: max(MAX_RUNS - variants, 2)]",
        "further = further[:0]",
        "tests/testing/test_faults.py::test_a_planted_fault_is_named",
    ),
    Mutant(
        "surplus tensors pass",
        "ladderize/testing/verify/check_tensors.py",
        "for name in part.tensors.keys() - wanted.keys() - indices:",
        "for name in part.tensors.keys() - part.tensors.keys() - indices:",
        "tests/testing/test_faults.py::test_a_planted_fault_is_named",
    ),
    Mutant(
        "caches of different layers share a fake value",
        "ladderize/graph/fake_values.py",
        "node if node in own else None",
        "None",
        "tests/testing/test_faults.py::test_what_the_faults_are_planted_in_is_right",
    ),
    Mutant(
        "of a kernel's functions the first is read",
        "ladderize/backends/emitted/kernels.py",
        "for kernel in kernels or functions[:1]:",
        "for kernel in functions[:1]:",
        "tests/backends/test_emitted_kernels.py::test_a_kernel_behind_a_function_that_it_calls",
    ),
    Mutant(
        "a store that is not recognized is none",
        "ladderize/backends/emitted/kernels.py",
        "if not outputs | mutated <= reader.stored:",
        "if False:",
        "tests/backends/test_emitted_kernels.py"
        "::test_a_kernel_whose_store_is_not_recognized_is_not_read",
    ),
    Mutant(
        "devices in regions stay as they were traced",
        "ladderize/frontends/sharded/module.py",
        "if isinstance(region, GraphModule):",
        "if False:",
        "tests/ranks/test_parallelize.py::test_inductor_emits_the_same_order",
    ),
    Mutant(
        "gloo on CUDA is not told",
        "ladderize/passes/device_checks.py",
        'compat.backend_name(group, "cuda") == "gloo"',
        'compat.backend_name(group, "cuda") == "mpi"',
        "tests/passes/test_device_checks.py"
        "::test_gloo_on_cuda_is_warned_of_and_no_cuda_graph_captures_it",
    ),
    Mutant(
        "a value behind a write is what was written",
        "ladderize/graph/dataflow.py",
        "and position.get(operand, -1) < position[last_write[storage]]",
        "",
        "tests/passes/test_spell_engine_ops.py"
        "::test_an_all_reduce_that_waits_becomes_a_launch_and_a_late_wait",
    ),
    Mutant(
        "an engine's norm is of the branch alone",
        "ladderize/passes/spell_engine_ops.py",
        "return [self._call(norm, (total, [width], weight, epsilon), branch), total]",
        "return [self._call(norm, (branch, [width], weight, epsilon), branch), total]",
        "tests/passes/test_spell_engine_ops.py::test_a_norm_of_the_sum",
    ),
    Mutant(
        "the last wait of a graph is not pinned",
        "ladderize/passes/pin_order.py",
        "computed[key] = [*(op for op in computed[key] if op not in needs), node]",
        "computed[key] = []",
        "tests/passes/test_schedule.py"
        "::test_the_last_wait_is_put_off_past_what_computes_without_it",
    ),
    Mutant(
        "only the first result of an unknown op is a stream",
        "ladderize/streams/hidden_sums.py",
        "if value.target is operator.getitem)",
        "if value.target is operator.add)",
        "tests/passes/test_spell_engine_ops.py::test_an_unknown_op_that_may_hide_a_sum_is_named",
    ),
    Mutant(
        "what an unknown op writes is no result of it",
        "ladderize/streams/hidden_sums.py",
        "for operand in written_operands(node)}",
        "for operand in ()}",
        "tests/passes/test_spell_engine_ops.py::test_an_unknown_op_that_may_hide_a_sum_is_named",
    ),
    Mutant(
        "a block is not shown",
        "ladderize/report/present/lines.py",
        "yield from map(of_block, run.shown)",
        "yield from map(of_block, run.shown[1:])",
        "tests/report/test_text.py::test_one_block_a_line",
    ),
    Mutant(
        "the last block of a segment is not shown",
        "ladderize/report/present/lines.py",
        "yield from find_runs(stream.blocks[segment.first : segment.last + 1])",
        "yield from find_runs(stream.blocks[segment.first : segment.last])",
        "tests/report/test_text.py::test_one_block_a_line",
    ),
    Mutant(
        "rewired blocks are left out of the diff",
        "ladderize/report/present/diff.py",
        "if block.is_rewired",
        "if block.is_rewired and block.index > 1",
        "tests/report/test_report.py::test_diff_and_network_say_the_same",
    ),
    Mutant(
        "topk chooses no experts",
        "ladderize/streams/branch_kinds.py",
        'frozenset({"topk", "argmax",',
        'frozenset({"argmax",',
        "tests/streams/test_branch_kinds.py::test_kinds",
    ),
)


# ---- quality ----------------------------------------------------------------------------------

QUALITY = (
    Mutant(
        "a run begins between a write and what was written",
        "ladderize/quality/sensitivity/reusing_run.py",
        "if not any(made < start <= written for made, written in spans)",
        "if spans is not None",
        "tests/quality/test_sensitivity.py::test_a_run_does_not_begin_behind_what_is_written_again",
    ),
    Mutant(
        "weights that were kept change with the new ones",
        "ladderize/quality/sensitivity/reusing_run.py",
        "return value.clone() if node in self._blends else value",
        "return value",
        "tests/quality/test_sensitivity.py::test_every_set_costs_what_its_ladder_does",
    ),
    Mutant(
        "nothing of the base is kept",
        "ladderize/quality/sensitivity/damage_meter.py",
        "run.keeps = True",
        "run.keeps = False",
        "tests/quality/test_sensitivity.py"
        "::test_what_comes_before_the_first_changed_block_is_not_run_again",
    ),
    Mutant(
        "a set is given the damage of another one",
        "ladderize/quality/sensitivity/damage_meter.py",
        "[sets[i] for i in together])",
        "[sets[i] for i in reversed(together)])",
        "tests/quality/test_sensitivity.py::test_sets_in_one_run",
    ),
    Mutant(
        "blocks are ranked by what they cost alone",
        "ladderize/quality/sensitivity/set_search.py",
        "added[block] = total - damage",
        "added[block] += 0 * (total - damage)",
        "tests/quality/test_set_search.py"
        "::test_growing_avoids_what_is_cheap_alone_and_dear_together",
    ),
    Mutant(
        "a block reads by the weight of another one",
        "ladderize/passes/blend_reads.py",
        "*(self._weights[blend] for blend in inputs))",
        "*(self._weights[blend] for blend in reversed(inputs)))",
        "tests/passes/test_blend_reads.py::test_weights_choose_the_blocks",
    ),
    Mutant(
        "parts of a batch read by turns",
        "ladderize/passes/blend_reads.py",
        "weights.repeat_interleave(",
        "weights.repeat(",
        "tests/quality/test_sensitivity.py::test_sets_in_one_run",
    ),
    Mutant(
        "the best set is the smallest one",
        "ladderize/config/block_plan.py",
        "key=lambda each: (each.healed_kl or each.kl, each.share))",
        "key=lambda each: each.share)",
        "tests/quality/test_sensitivity.py::test_the_best_set_for_a_share",
    ),
    Mutant(
        "padding is a target",
        "ladderize/quality/measures.py",
        "next_tokens(tokens.long(), compared)",
        "next_tokens(tokens.long())",
        "tests/quality/test_measures.py::test_against_formulas",
    ),
    Mutant(
        "an interval holds half of the resamples",
        "ladderize/quality/evaluation.py",
        "[0.025, 0.975]",
        "[0.25, 0.75]",
        "tests/quality/test_measures.py::test_intervals_hold_the_true_value_as_often_as_they_say",
    ),
    Mutant(
        "damage does not count in what is advised",
        "ladderize/tools/predict/planning/damage_curve.py",
        "gain / most - point.kl / worst for",
        "gain / most for",
        "tests/tools/test_damage_curve.py::test_the_advised_set_is_where_the_curve_bends",
    ),
    Mutant(
        "options take the place of the checkpoint's",
        "ladderize/config/ladder_entry.py",
        "if self.agrees_with(name, left[name]) is False]",
        "if self.agrees_with(name, left[name]) is True]",
        "tests/checkpoints/test_ladder_entry.py::test_options_that_ask_for_another_ladder",
    ),
    Mutant(
        "what was not given is not filled",
        "ladderize/config/ladder_entry.py",
        "**({} if asked else self.selection)",
        "**{}",
        "tests/checkpoints/test_ladder_entry.py::test_what_it_says",
    ),
    Mutant(
        "the live model keeps the entry that was written",
        "ladderize/frontends/checkpoints/saving.py",
        "        delattr(config, KEY)",
        "        pass",
        "tests/checkpoints/test_saved_ladders.py::test_a_saved_ladder_is_the_same_without_options",
    ),
)

MUTANTS = (*STREAMS, *PASSES, *SHARDING, *COLLECTIVES, *FILES, *CHECKS, *QUALITY)
