"""The report: one self-contained HTML page about an evaluation or a data set."""
