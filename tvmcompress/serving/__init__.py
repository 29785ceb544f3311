"""A board's side: an RPC server that TVM's clients can use, and that a kernel, a peer or a tracker cannot take down.

`watchdog` keeps the port and starts `listener`, again whenever it stops answering. The listener shakes hands, answers
requests and forks a `session` for each client; `front` puts TLS before the port; `tracker` tells who serves where.
Only TVM's runtime is needed, neither its compiler nor its Python.
"""
