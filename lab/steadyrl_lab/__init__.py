"""Experiments with arms and seeds: run them, judge the claims that were written down before, print the page."""
