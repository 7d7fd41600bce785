"""Bayesian optimization over ranks that knows the noise of every observation (Sec. 3.2)."""
