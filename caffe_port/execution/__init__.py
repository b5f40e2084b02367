"""Running a net: its inputs, and the steps of its layers."""
