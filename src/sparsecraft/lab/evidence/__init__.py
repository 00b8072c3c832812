"""The statistics of evidence: intervals, verdicts, knees and tidy tables, on numpy alone."""
