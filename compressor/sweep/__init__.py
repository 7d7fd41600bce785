"""Many jobs: models x targets x seeds, each what `bocompress-export` alone gives, side by side."""
