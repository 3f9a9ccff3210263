"""The studio: a web page and an HTTP API over one engine.  Only this package imports the web framework.

`app.create_app` builds the application, `server.serve` runs it.  One thread (`worker.Worker`) owns the model; every
request becomes a job on disk (`store.JobStore`), and what happens to it is told by server-sent events (`events`).
"""
