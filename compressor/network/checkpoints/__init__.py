"""What people bring as a checkpoint: reading files, finding a network in them, inferring heads and stems."""
