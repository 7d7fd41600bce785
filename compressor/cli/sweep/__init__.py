"""`bocompress sweep`: the export command, many times."""
