"""One module per foreign library; none knows another."""
