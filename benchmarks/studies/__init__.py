"""Studies of what bocompress finds, next to baselines. Nothing imports them; they may import everything."""
