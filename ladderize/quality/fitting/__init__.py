"""A closed-form start for healing: the weights that read the stream first, by least squares."""
