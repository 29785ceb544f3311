"""How a deployment is measured: quality over samples, a race against a reference, memory, energy."""
