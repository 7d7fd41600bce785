"""Images, their transforms and fingerprints."""
