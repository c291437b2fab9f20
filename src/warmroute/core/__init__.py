"""The decision and everything it rests on: pure functions and state machines, no event loop, socket or clock."""
