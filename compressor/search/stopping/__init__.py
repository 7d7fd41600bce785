"""When the search may stop: the pointwise and the joint certificate, and posterior sample paths."""
