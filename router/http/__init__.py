"""HTTP/1.1 server of the router: uvloop moves the bytes, llhttp (httptools) reads heads, the rest is here.

`reader.py` and what it stands on are pure: bytes in, requests out. `connection.py` owns one socket, `server.py` all.
"""
