"""Networks that do not return one matrix of scores: what each output loses, and maps of classes."""
