"""A closed-form start for healing: fit the weights that read the stream by least squares."""
