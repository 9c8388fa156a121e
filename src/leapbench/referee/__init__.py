"""Judging methods on one workload: what a plan asks for, the search for settings, and the runs that are scored."""
