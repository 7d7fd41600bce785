"""The script that is written beside every model."""
