"""The residual stream: find it, choose blocks of it, say why it must be left alone."""
