"""Networks: loading checkpoints, finding layers, hooks, replacing, pruning, counting and saving."""
