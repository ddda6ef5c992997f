"""How good a network is: counts on the device, named numbers and pictures on the host."""
