"""The HTTP data plane: client connections in, engine connections out, bytes verbatim in between.

Callbacks on asyncio transports, no task and no future per request unless the service or a new connection must be
waited for. `server` accepts, `client` is one client's connection, `exchange` one request's way through, `upstream` the
connections to the engines, `head` the bytes of message heads, `plain` those that the native core reads.
"""
