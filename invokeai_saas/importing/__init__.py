"""An InvokeAI root (SQLite, files) in, its users' libraries in our Postgres and storage out; may be run again, and after a kill."""
