"""Surrogates of the objective: Gaussian processes, their prior means, and the posterior over J."""
