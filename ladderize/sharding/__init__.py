"""Sharding: find a placement for every value of the branches and of the vocabulary.

graph, blocks, number of ranks ── plan ── ShardPlan, applied by passes/shard.py

plan, edits   the edits of the graph, from the results of propagate and vocabulary
propagate     carries placements through the branches until nothing changes
vocabulary    the embedding, the head and the loss; logits: the ops between head and loss
rules         the sharding rules: table.py has one row per op, other files one kind of op each
visit         the inputs and requests of a rule; values: the placements of values
placement     Replicate, Whole, Partial, Shard, and the local part of each
undivided     branches and parameters that are kept whole, with reasons and costs
"""
