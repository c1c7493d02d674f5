"""HTTP/1.1 on asyncio protocols: the server behind the door and the pooled client to upstreams.

Both sides stand on httptools (llhttp in its strict mode) and keep the work per call small: head and body leave
in one write, time-outs are numbers compared by one coarse sweep, and a coroutine waits only where it must.
"""
