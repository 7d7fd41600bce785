"""Rows and sentences on outputs that are not one matrix of scores."""
