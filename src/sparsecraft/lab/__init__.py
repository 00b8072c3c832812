"""The lab: tasks, claims, comparison, run store and report."""
