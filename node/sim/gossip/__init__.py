"""Thousands of gossiping peers in one process: real models and real arithmetic under virtual
time."""
