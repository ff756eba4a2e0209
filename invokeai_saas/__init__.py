"""InvokeAI for many users: Postgres, tenants, storage, accounts."""
