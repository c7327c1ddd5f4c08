"""A server of networks over HTTP: an application for ASGI, and uvicorn to run it. No torch.

protocol   connections that are too slow are closed        (uvicorn's, with a deadline)
gate       each request: token, number, log line, metrics; no traceback leaves
app        what there is to ask, and who answers it         (FastAPI)
bodies     a request's bytes, within limits;  images, kserve: what they hold
queue      images of all requests, batched, on a few threads
models     networks by name, loaded again when their files are replaced
"""
