"""How a report looks: text, HTML, diff, digraph; all drawn from the same lines."""
