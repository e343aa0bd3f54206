"""The device protocol, accuracy, instruction counts, sizes, comparison and the report."""
