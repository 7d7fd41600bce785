"""Processes that run one task many times: on this machine, or on a cluster of Ray or Dask."""
