"""Present a report as text, HTML, diff or digraph."""
