"""Stages after the network is ready: evaluate, export, measure, write, report."""
