"""What tests of Warmroute, and of what is built on it, need: fakes of every port and a simulated engine."""
