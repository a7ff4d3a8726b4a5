"""The residual stream: find it, choose its blocks, and report why it cannot be rewritten."""
