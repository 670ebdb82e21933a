"""What a run measures: the names of all numbers, estimates with intervals, and the signs of trouble."""
