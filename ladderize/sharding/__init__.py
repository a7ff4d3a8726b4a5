"""Which rank holds what: a placement for every value of the branches, and of the vocabulary.

graph, blocks, number of ranks ── plan ── ShardPlan, carried out by passes/shard.py

plan, edits   what to change in the graph, from what propagate and vocabulary found
propagate     carries placements through the branches until nothing changes
vocabulary    the embedding, the head and the loss; logits: the way from one to the other
rules         THE TABLE: one row an op; the other *_rules hold the rows of one kind of op
visit         what a rule sees and may ask for; values: what it gets and gives
placement     Replicate, Whole, Partial, Shard, and what a rank holds of each
undivided     what stays whole, why, and at what cost
"""
