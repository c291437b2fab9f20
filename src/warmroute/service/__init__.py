"""What runs: asynchronous, but only through the ports in `ports`."""
