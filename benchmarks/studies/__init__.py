"""Studies: what bocompress finds beside what others find. These may import everything."""
